"""Fetching weights from a real server on this machine that fails in every way a network can."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from weight_samples import (
    BODY,
    ODD_NAME,
    PAGE,
    entry,
    half,
    half_without_range,
    port_without_server,
    refuse,
    self_signed_certificate,
    serving,
    sha256,
    store_of,
    whole,
    whole_without_range,
    with_length,
    without_length,
    write,
)

from MedZeroSegLib import weights_download
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.weights import WeightsStore, weights_store

PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
FILES = {"net.pth": BODY}


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "MEDZEROSEG_CA_FILE", "MEDZEROSEG_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weights_download, "PAUSE", 0.0)


def store_from(home: Path, *addresses: str, **changes: object) -> WeightsStore:
    """A store whose one file, net.pth, is to be had at the addresses, in that order."""
    sources = {"net.pth": [f"{address}/net.pth" for address in addresses]}
    return store_of(home, {"net": entry(FILES, sources)}, **changes)


def target(store: WeightsStore) -> Path:
    return store.root / "net" / "net.pth"


def part(store: WeightsStore) -> Path:
    return store.root / "net" / "net.pth.part"


def refusal(store: WeightsStore) -> str:
    """The sentence of a fetch that fails; nothing has the final name then."""
    with pytest.raises(InstallationError) as caught:
        store.fetch("net")
    assert not target(store).exists()
    return str(caught.value)


def assert_tells_how_to_carry_it(sentence: str, store: WeightsStore) -> None:
    assert "\n" not in sentence and sentence.endswith(".")
    for text in (store.catalogue["net"].files[0].sources[0], str(target(store).parent), sha256(BODY)):
        assert text in sentence


# All is well


def test_fetched_file_is_whole_and_under_its_name_in_a_folder_of_any_script(tmp_path):
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        store.fetch("tiny")
    assert ODD_NAME in str(target(store))
    assert target(store).read_bytes() == BODY
    assert [path.name for path in target(store).parent.iterdir()] == ["net.pth"]
    assert store.locate("net") == target(store)


def test_progress_runs_to_the_size_of_all_files(tmp_path):
    seen = []
    with serving({"a": BODY, "b": BODY[:1000]}) as server:
        sources = {name: [f"{server.address}/{name}"] for name in ("a", "b")}
        store = store_of(tmp_path, {"net": entry({"a": BODY, "b": BODY[:1000]}, sources)})
        store.fetch("net", progress=lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [201_000] * len(seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (201_000, 201_000)


def test_weights_in_place_need_no_connection(tmp_path, monkeypatch):
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        write(store.root / "net", FILES)
        given = write(tmp_path / "carried", FILES)

        def no_connection(*_: object) -> None:
            raise AssertionError("a connection was made")

        monkeypatch.setattr(socket.socket, "connect", no_connection)
        store.fetch("net")
        assert store.locate("net", allow_download=True) == target(store)
        assert store_from(tmp_path, server.address, folder=given).locate("net", allow_download=True).parent == given
        assert store.verify("net")[0].ok
    assert server.asked == []


def test_looking_up_downloads_only_when_it_may(tmp_path):
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        with pytest.raises(InstallationError, match="not on this machine"):
            store.locate("net")
        assert server.asked == []
        assert store.locate("net", allow_download=True).read_bytes() == BODY
        store.locate("net", allow_download=True)
    assert len(server.asked) == 1


def test_damaged_file_in_the_store_is_fetched_anew(tmp_path):
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        write(store.root / "net", {"net.pth": BODY[:-1] + b"?"})
        store.fetch("net")
    assert target(store).read_bytes() == BODY


# Closed connections


def test_closed_connection_is_resumed_where_it_broke(tmp_path):
    with serving(FILES, half, half, whole) as server:
        store = store_from(tmp_path, server.address)
        store.fetch("net")
    assert target(store).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]


def test_server_without_ranges_begins_anew(tmp_path):
    with serving(FILES, half_without_range, whole_without_range) as server:
        store = store_from(tmp_path, server.address)
        store.fetch("net")
    assert target(store).read_bytes() == BODY
    assert len(server.asked) == 2


def test_connection_that_always_breaks_leaves_a_part_for_the_next_time(tmp_path):
    with serving(FILES, half_without_range) as server:
        store = store_from(tmp_path, server.address)
        sentence = refusal(store)
        assert "100,000 bytes are kept" in sentence
        assert_tells_how_to_carry_it(sentence, store)
        assert part(store).stat().st_size == len(BODY) // 2
        server.answers[:] = [whole]
        asked = len(server.asked)
        store.fetch("net")
    assert server.ranges[asked:] == ["bytes=100000-"]
    assert target(store).read_bytes() == BODY and not part(store).exists()


def test_body_of_unsaid_length_that_ends_early_is_not_taken_for_whole(tmp_path):
    with serving(FILES, without_length(lambda body: body[:5000])) as server:
        store = store_from(tmp_path, server.address)
        assert "closed too early" in refusal(store)


def test_interruption_by_the_user_leaves_no_final_name(tmp_path):
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        with pytest.raises(KeyboardInterrupt):
            store.fetch("net", progress=stop)
        assert not target(store).exists() and part(store).exists()
        store.fetch("net")
    assert target(store).read_bytes() == BODY


@pytest.mark.parametrize(
    "remains",
    [b"?" * 1000, BODY + b"?", b"?" * len(BODY), BODY],
    ids=["another beginning", "longer than the file", "as long, another content", "only the renaming was missing"],
)
def test_part_of_any_kind_ends_in_the_right_file(tmp_path, remains):
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address)
        write(store.root / "net", {"net.pth.part": remains})
        store.fetch("net")
    assert target(store).read_bytes() == BODY and not part(store).exists()
    assert (len(server.asked) == 0) == (remains == BODY)


def test_server_that_answers_with_another_piece_is_asked_for_the_whole(tmp_path):
    def another_piece(handler, body):
        handler.send_headers(206, Content_Range=f"bytes 0-9/{len(body)}", Content_Length=10)
        handler.wfile.write(body[:10])

    with serving(FILES, another_piece, whole) as server:
        store = store_from(tmp_path, server.address)
        write(store.root / "net", {"net.pth.part": BODY[:777]})
        store.fetch("net")
    assert target(store).read_bytes() == BODY and server.ranges == ["bytes=777-", None]


# Wrong answers


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
@pytest.mark.parametrize("send", [with_length, without_length])
def test_login_page_is_refused_and_told_as_one(tmp_path, kind, send):
    with serving(FILES, send(lambda _: PAGE, kind)) as server:
        store = store_from(tmp_path, server.address)
        write(store.root / "net", {"net.pth.part": BODY[:777]})
        sentence = refusal(store)
    assert "web page" in sentence and "login" in sentence
    assert_tells_how_to_carry_it(sentence, store)
    assert part(store).read_bytes() == BODY[:777]


def test_wrong_hash_is_refused_with_both_hashes(tmp_path):
    other = BODY[::-1]
    with serving(FILES, with_length(lambda _: other)) as server:
        store = store_from(tmp_path, server.address)
        sentence = refusal(store)
    assert sha256(other)[:8] in sentence and sha256(BODY)[:8] in sentence
    assert_tells_how_to_carry_it(sentence, store)
    assert not part(store).exists()
    assert len(server.asked) == 1


@pytest.mark.parametrize("send", [with_length, without_length])
@pytest.mark.parametrize("content", [lambda body: body + b"more", lambda body: body[:100]])
def test_another_size_is_refused(tmp_path, send, content):
    with serving(FILES, send(content)) as server:
        store = store_from(tmp_path, server.address)
        assert_tells_how_to_carry_it(refusal(store), store)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusal_by_the_server_leads_to_the_next_source(tmp_path, status):
    with serving(FILES, refuse(status)) as first, serving(FILES) as second:
        store = store_from(tmp_path, first.address, second.address)
        store.fetch("net")
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert target(store).read_bytes() == BODY


def test_wrong_file_from_one_source_leads_to_the_next(tmp_path):
    with serving(FILES, with_length(lambda body: body[::-1])) as first, serving(FILES) as second:
        store = store_from(tmp_path, first.address, second.address)
        store.fetch("net")
    assert target(store).read_bytes() == BODY


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(tmp_path, status):
    with serving(FILES, refuse(status), whole) as server:
        store = store_from(tmp_path, server.address)
        store.fetch("net")
    assert len(server.asked) == 2


def test_server_that_stays_busy_is_named_with_its_answer(tmp_path):
    with serving(FILES, refuse(503)) as server:
        assert "503 Service Unavailable" in refusal(store_from(tmp_path, server.address))
    assert len(server.asked) == weights_download.ATTEMPTS


def test_server_that_is_down_is_told_and_the_next_source_tried(tmp_path):
    nobody = f"http://127.0.0.1:{port_without_server()}"
    store = store_from(tmp_path, nobody)
    sentence = refusal(store)
    assert "no connection" in sentence
    assert_tells_how_to_carry_it(sentence, store)
    with serving(FILES) as server:
        store_from(tmp_path, nobody, server.address).fetch("net")
    assert target(store).read_bytes() == BODY


def test_redirect_to_a_login_page_is_refused(tmp_path):
    with serving({"login": b""}, with_length(lambda _: PAGE, "text/html")) as portal:

        def redirect(handler, body):
            handler.send_headers(302, Location=f"{portal.address}/login", Content_Length=0)

        with serving(FILES, redirect) as server:
            assert "web page" in refusal(store_from(tmp_path, server.address))


def test_download_larger_than_the_disk_is_not_begun(tmp_path):
    files = {"net.pth": BODY}
    with serving(files) as server:
        listed = entry(files, {"net.pth": [f"{server.address}/net.pth"]})
        listed["files"][0]["size"] = 10**18
        store = store_of(tmp_path, {"net": listed})
        assert "make room" in refusal(store)
    assert server.asked == []


def test_store_in_an_impossible_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with serving(FILES) as server:
        store = store_from(tmp_path, server.address, root=tmp_path / "file" / "store")
        with pytest.raises(InstallationError, match="can't be written"):
            store.fetch("net")


# Files whose hash the catalogue does not know


def test_file_of_unknown_hash_is_fetched_only_when_its_hash_is_stated(tmp_path):
    files = {"net.pth": BODY, "vocab.txt": b"[PAD]\n"}
    with serving(files) as server:
        listed = entry(files, {name: [f"{server.address}/{name}"] for name in files})
        listed["files"][1] |= {"size": None, "sha256": None}
        store = store_of(tmp_path, {"net": listed})
        with pytest.raises(InstallationError, match="SHA-256 of 'vocab.txt' of 'net' is not known"):
            store.fetch("net")
        assert target(store).read_bytes() == BODY  # the one that is known is here nevertheless
        with pytest.raises(InstallationError, match="begins with"):
            store.fetch("net", stated={"vocab.txt": "0" * 64})
        with pytest.raises(InputError, match="64 hexadecimal digits"):
            store.fetch("net", stated={"vocab.txt": "abc"})
        store.fetch("net", stated={"vocab.txt": sha256(files["vocab.txt"]).upper()})
    assert store.locate("net") == store.root / "net"
    (store.root / "net" / "vocab.txt").write_bytes(b"[pad]\n")
    with pytest.raises(InstallationError, match="not the file expected"):
        store.locate("net")


def with_words(folder: Path, address: str, files: dict[str, bytes]) -> WeightsStore:
    """A store with a vocabulary whose hash nobody states, known by its words."""
    listed = entry(files, {name: [f"{address}/{name}"] for name in files})
    listed["files"][1] |= {"size": None, "sha256": None}
    listed["files"][1]["words"] = {"count": 3, "first": "[PAD]", "includes": ["nephropathy"]}
    return store_of(folder, {"net": listed})


def test_a_list_of_words_without_a_hash_is_fetched_with_the_rest_by_one_command(tmp_path):
    words = b"[PAD]\nliver\nnephropathy\n"
    files = {"net.pth": BODY, "vocab.txt": words}
    with serving(files) as server:
        store = with_words(tmp_path, server.address, files)
        store.fetch("tiny")
        assert store.locate("net") == store.root / "net"
        server.files["vocab.txt"] = words.replace(b"liver", b"##er")
        (store.root / "net" / "vocab.txt").write_bytes(b"[PAD]\n")
        with pytest.raises(InstallationError, match="begins with"):  # what it was once is what it must be
            store.fetch("net")


def test_a_page_in_place_of_a_list_of_words_is_refused(tmp_path):
    files = {"net.pth": BODY, "vocab.txt": b"bert\nwords\n"}
    with serving(files) as server:
        store = with_words(tmp_path, server.address, files)
        with pytest.raises(InstallationError, match="2 different words instead of 3"):
            store.fetch("net")
        assert not (store.root / "net" / "vocab.txt").exists()


# Proxies and certificates


def test_http_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with serving(FILES) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.address)
        store = store_from(tmp_path, "http://weights.invalid")
        store.fetch("net")
    assert proxy.asked == [("GET", "http://weights.invalid/net.pth", None)]
    assert target(store).read_bytes() == BODY


def test_proxy_that_wants_a_login_is_told(tmp_path, monkeypatch):
    with serving({}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.address)
        sentence = refusal(store_from(tmp_path, "https://weights.invalid"))
    assert proxy.asked == [("CONNECT", "weights.invalid:443", None)]
    assert "407" in sentence


def test_proxy_that_is_no_address_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy.invalid")
    assert "correct HTTPS_PROXY" in refusal(store_from(tmp_path, "https://weights.invalid"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("The openssl program, which makes the certificate of this test, is not installed.")
    return self_signed_certificate(tmp_path_factory.mktemp("authority") / ODD_NAME)


def test_https_proxy_of_the_environment_is_used(tmp_path, monkeypatch, certificate):
    with serving(FILES, certificate=certificate) as server:
        port = int(server.address.rsplit(":", 1)[1])
        with serving({}, tunnel_to=port) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.address)
            store = store_from(tmp_path, "https://weights.invalid", ca_file=certificate)
            store.fetch("net")
    assert proxy.asked == [("CONNECT", "weights.invalid:443", None)]
    assert target(store).read_bytes() == BODY


def test_self_signed_certificate_is_refused_without_its_file(tmp_path, certificate):
    with serving(FILES, certificate=certificate) as server:
        store = store_from(tmp_path, server.address)
        sentence = refusal(store)
    assert "certificate is not trusted" in sentence and "MEDZEROSEG_CA_FILE" in sentence
    assert_tells_how_to_carry_it(sentence, store)
    assert server.asked == []


@pytest.mark.parametrize("variable", ["MEDZEROSEG_CA_FILE", "SSL_CERT_FILE", None])
def test_self_signed_certificate_is_accepted_with_its_file(tmp_path, monkeypatch, certificate, variable):
    if variable:
        monkeypatch.setenv(variable, str(certificate))
    ca_file = weights_store(ca_file=None if variable else certificate).ca_file
    with serving(FILES, certificate=certificate) as server:
        store = store_from(tmp_path, server.address, ca_file=ca_file)
        store.fetch("net")
    assert target(store).read_bytes() == BODY


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificate_file_that_is_none_is_named(tmp_path, content):
    ca_file = tmp_path / "authority.pem"
    if content:
        ca_file.write_text(content)
    store = store_from(tmp_path, "https://weights.invalid", ca_file=ca_file)
    sentence = refusal(store)
    assert "authority.pem" in sentence and "PEM" in sentence
    assert_tells_how_to_carry_it(sentence, store)

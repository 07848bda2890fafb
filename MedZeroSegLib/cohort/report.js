// Sorts and filters the table of segments, and puts pictures in when their lines come into view.
"use strict";
const body = document.querySelector("#table tbody");
const rows = Array.from(body.rows);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const search = document.getElementById("search");
const structure = document.getElementById("structure");
const kind = document.getElementById("kind");
const shown = document.getElementById("shown");
const plain = (text) => text.normalize("NFKC").toLowerCase();
const texts = rows.map((row) => plain(row.textContent));
const more = document.getElementById("more");
const DISPLAYED = 300;  // lines at once; thousands take seconds to lay out
let displayed = DISPLAYED;
let ordered = rows;
const fitting = new Set(rows);
const collator = new Intl.Collator(undefined, { numeric: true });

function putPicture(row) {
  const place = row.querySelector(".picture span");
  if (!place) return;
  const image = document.createElement("img");
  image.alt = "";
  image.src = pictures[row.dataset.c];
  place.replaceWith(image);
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      putPicture(entry.target);
      inView.unobserve(entry.target);
    }
  }
}, { rootMargin: "400px" });
rows.forEach((row) => inView.observe(row));
addEventListener("beforeprint", () => rows.filter((row) => !row.hidden).forEach(putPicture));

function sortBy(button) {
  const column = Number(button.dataset.key);
  const number = button.dataset.number === "1";
  const head = button.closest("th");
  const before = head.getAttribute("aria-sort");
  const descending = before === "none" ? number : before === "ascending";
  for (const other of head.parentNode.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[column];
    return number ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent;
  };
  const keyed = rows.map((row) => ({ row, key: value(row) }));
  keyed.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);  // what has no number comes last
    const order = number ? a.key - b.key : collator.compare(a.key, b.key);
    return descending ? -order : order;
  });
  ordered = keyed.map((entry) => entry.row);
  body.append(...ordered);
  display();
}

function filter() {
  const words = plain(search.value).split(/\s+/).filter(Boolean);
  fitting.clear();
  rows.forEach((row, n) => {
    const fits = words.every((word) => texts[n].includes(word))
      && (!structure.value || row.cells[2].textContent === structure.value)
      && (!kind.value || row.dataset.k.split(" ").includes(kind.value));
    if (fits) fitting.add(row);
  });
  display();
}

function display() {
  let count = 0;
  for (const row of ordered) row.hidden = !fitting.has(row) || ++count > displayed;
  more.hidden = count <= displayed;
  const cut = more.hidden ? "" : `, the first ${displayed} displayed`;
  shown.textContent = `${count} of ${rows.length} segments${cut}`;
}

document.querySelectorAll("#table thead button").forEach((button) => button.addEventListener("click", () => sortBy(button)));
for (const control of [search, structure, kind]) control.addEventListener("input", filter);
more.addEventListener("click", () => {
  displayed = Infinity;
  display();
});
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("filters").hidden = false;
filter();

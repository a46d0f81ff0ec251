"use strict";
// Only text is ever written, never HTML: what stands in the page came from datasets.

function make(tag, text, attributes) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

for (const box of document.querySelectorAll(".command")) {
  const button = make("button", "copy", { type: "button" });
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(box.querySelector("pre"));
    document.execCommand("copy"); // works for a file on disk too, unlike navigator.clipboard
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  box.append(button);
}

for (const table of document.querySelectorAll("table.pairs")) {
  const rows = [...table.tBodies[0].rows];
  const size = 10;
  let page = 0;
  const search = make("input", "", { type: "search", placeholder: "search these texts", "aria-label": "Search these pairs" });
  const back = make("button", "previous", { type: "button" });
  const next = make("button", "next", { type: "button" });
  const said = make("span", "", { role: "status" });
  const show = () => {
    const word = search.value.toLowerCase();
    const found = rows.filter((row) => row.textContent.toLowerCase().includes(word));
    const pages = Math.max(1, Math.ceil(found.length / size));
    page = Math.min(page, pages - 1);
    const shown = new Set(found.slice(page * size, (page + 1) * size));
    for (const row of rows) row.hidden = !shown.has(row);
    said.textContent = `${found.length} of ${rows.length} pairs, page ${page + 1} of ${pages}`;
    back.disabled = page === 0;
    next.disabled = page === pages - 1;
  };
  search.addEventListener("input", () => { page = 0; show(); });
  back.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  const pager = make("div", "", { class: "pager" });
  pager.append(search, back, next, said);
  table.before(pager);
  show();
}

"use strict";
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const first = [...body.rows];

  // Numbers before words, and what is missing last in either direction.
  function compare(a, b, sign) {
    if (a === b) return 0;
    if (a === "" || b === "") return a === "" ? 1 : -1;
    const x = Number(a), y = Number(b);
    if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
    return sign * a.localeCompare(b, "en", { numeric: true });
  }

  function sort(column) {
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.sort;
    // Equal rows keep the order of their numbers.
    body.append(...[...first].sort((a, b) => compare(value(a), value(b), down ? -1 : 1)));
    document.getElementById("sorted").textContent =
      `Sorted by ${heads[column].textContent}, ${down ? "highest" : "lowest"} first.`;
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
})();

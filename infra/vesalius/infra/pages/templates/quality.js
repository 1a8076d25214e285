"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  const others = by("others");
  const find = by("find"), split = by("split"), level = by("level"), order = by("order");
  const dialog = by("large");
  let shown = cards, open = 0;

  const many = (num) => `${num} subject${num === 1 ? "" : "s"}`;

  function filter() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = [];
    for (const card of cards) {
      const data = card.dataset;
      const fits = words.every((word) => data.words.includes(word))
        && (!split.value || data.split === split.value)
        && (!level.value || (level.value === "fine") === (data.level === "fine"));
      card.hidden = !fits;
      if (fits) shown.push(card);
    }
    by("count").textContent = shown.length === cards.length
      ? many(cards.length) : `${shown.length} of ${many(cards.length)}`;
    by("none").hidden = shown.length > 0;
  }

  function sort() {
    const key = order.value;
    const value = (card) => key === "id" || key === "split"
      ? card.dataset[key] : card.dataset[key] === "" ? Infinity : Number(card.dataset[key]);
    const sorted = [...others.children].sort((a, b) => {
      const x = value(a), y = value(b);
      return x < y ? -1 : x > y ? 1 : Number(a.dataset.number) - Number(b.dataset.number);
    });
    others.append(...sorted);
    const rank = new Map([...document.querySelectorAll(".card")].map((card, place) => [card, place]));
    cards.sort((a, b) => rank.get(a) - rank.get(b));
    filter();
  }

  function enlarge(place) {
    const withPicture = shown.filter((card) => card.querySelector(".planes"));
    if (!withPicture.length) return;
    open = (place + withPicture.length) % withPicture.length;
    const card = withPicture[open];
    by("large-title").textContent = card.dataset.id;
    by("large-picture").replaceChildren(card.querySelector(".planes").cloneNode(true));
    by("large-said").replaceChildren(card.querySelector(".said").cloneNode(true));
    if (!dialog.open) dialog.showModal();
  }

  for (const control of [find, split, level]) control.addEventListener("input", filter);
  order.addEventListener("input", sort);
  by("outlines").addEventListener("input", (event) => document.body.classList.toggle("plain", !event.target.checked));
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".open");
    if (!button) return;
    enlarge(shown.filter((card) => card.querySelector(".planes")).indexOf(button.closest(".card")));
  });
  by("before").addEventListener("click", () => enlarge(open - 1));
  by("after").addEventListener("click", () => enlarge(open + 1));
  by("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog || event.target.closest("a")) dialog.close(); });
  document.addEventListener("keydown", (event) => {
    if (dialog.open) {
      if (event.key === "ArrowLeft") enlarge(open - 1);
      if (event.key === "ArrowRight") enlarge(open + 1);
    } else if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      find.focus();
    }
  });
  // A link to a subject that the filter hides shows it again.
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.hidden) { find.value = ""; split.value = ""; level.value = ""; filter(); target.scrollIntoView(); }
  });
  filter();
})();

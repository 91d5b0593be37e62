// Choose a class by typing.
const choosing = { image: null, head: null, matches: [], at: 0, set: new Set() };

function choose(image) {
  choosing.image = image;
  takeHead(activeHead(image));
  el("pictured").src = pictures.get(image.row) || `/thumbnail/${image.row}?token=${encodeURIComponent(token)}`;
  el("chooser").showModal();
  el("wanted").focus();
}

function takeHead(head) {
  choosing.head = head;
  choosing.set = new Set(partsOf(head, nowOf(choosing.image, head)));
  el("heads").replaceChildren(...(several() ? heads().map((one) => {
    const button = make("button", { tabIndex: -1, onclick: () => { takeHead(one); el("wanted").focus(); } }, one.name);
    button.setAttribute("aria-pressed", String(one === head));
    return button;
  }) : []));
  el("asked").replaceChildren(`What is `, make("span", { className: "id" }, choosing.image.id), several() ? ` in ${head.name}?` : "?");
  el("how").textContent = [
    head.kind === "multilabel" ? "Enter adds or takes away; Enter with nothing typed saves" : "Enter takes the marked one",
    several() ? "Tab: another head" : "", "Esc: leave it",
  ].filter((part) => part).join(" · ");
  el("choices").style.height = `${34 * head.classes.length}px`; // as many as there are, so that typing moves nothing
  el("wanted").value = "";
  list();
}

function list() {
  const { head, image } = choosing, typed = el("wanted").value.trim().toLowerCase();
  const texts = (one) => [one.value.toLowerCase(), one.name.toLowerCase()];
  const rank = (one) => (texts(one).includes(typed) ? 0 : texts(one).some((text) => text.startsWith(typed)) ? 1 : 2);
  const now = nowOf(image, head), suggested = image.suggested[head.name];
  const first = (one) => (typed || head.kind === "multilabel" ? 0 : one.value === suggested ? 0 : 1);
  choosing.matches = head.classes.filter((one) => texts(one).some((text) => text.includes(typed)))
    .sort((a, b) => first(a) - first(b) || rank(a) - rank(b)).slice(0, 200);
  choosing.at = 0;
  el("choices").replaceChildren(...choosing.matches.map((one, place) => {
    const notes = [one.name === one.value ? "" : one.value, one.value === now ? "now" : "", one.value === suggested ? "suggested" : ""];
    return make("li", { className: place === choosing.at ? "here" : "", onclick: () => { choosing.at = place; take(); } },
      head.kind === "multilabel" ? make("span", { className: "tick" }, choosing.set.has(one.value) ? "✓" : "") : null,
      one.name, make("span", { className: "note" }, notes.filter((note) => note).join(" · ")));
  }));
  if (!choosing.matches.length) el("choices").replaceChildren(make("li", {}, `No class is called "${el("wanted").value}"`));
}

function take() {
  const { head, image, matches, at, set } = choosing, one = matches[at];
  if (head.kind === "multilabel") {
    if (!one) return;
    if (!set.delete(one.value)) set.add(one.value);
    el("wanted").value = "";
    list();
    choosing.at = Math.max(0, choosing.matches.indexOf(one));
    markChoice();
    return;
  }
  if (one) give(image, head, one.value);
}

function give(image, head, value) {
  el("chooser").close();
  trying(() => send("relabel", image, { [head.name]: value }));
}

function markChoice() {
  [...el("choices").children].forEach((node, place) => {
    node.classList.toggle("here", place === choosing.at);
    if (place === choosing.at) node.scrollIntoView({ block: "nearest" });
  });
}

function chooserKey(key, shifted) {
  if (key === "ArrowDown" || key === "ArrowUp") {
    choosing.at = Math.max(0, Math.min(choosing.matches.length - 1, choosing.at + (key === "ArrowDown" ? 1 : -1)));
    markChoice();
  } else if (key === "Tab") {
    const all = heads();
    takeHead(all[(all.indexOf(choosing.head) + (shifted ? all.length - 1 : 1)) % all.length]);
  } else if (key === "Enter") {
    const { head, image, set } = choosing;
    const isDone = head.kind === "multilabel" && !el("wanted").value.trim();
    if (isDone) give(image, head, head.classes.map((one) => one.value).filter((value) => set.has(value)).join(head.separator));
    else take();
  } else return false;
  return true;
}
el("wanted").addEventListener("input", list);

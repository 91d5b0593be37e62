// What keys and buttons do. One thing is done after the other; keys that are pressed meanwhile wait for their turn.
let busy = false;
const pressed = [];

async function trying(work) {
  if (busy) return;
  busy = true;
  try { await work(); } catch (error) { say(error.message, true); }
  busy = false;
  while (!busy && pressed.length) press(...pressed.shift(), true);
}

async function send(action, image, values = {}) {
  const entry = current();
  const answer = await call("/api/decide", { action, queue: view.queue, entry: entry.place, row: image.row, values });
  view.entries[view.here] = answer.entry;
  Object.assign(view.state, { decisions: answer.decisions, queues: answer.queues });
  say(answer.said);
  redraw(view.here);
  drawHeader();
  drawRest();
  if (answer.entry.open) { view.head = ""; mark(); } else await onwards();
}

async function onwards() { // to the next open one, which may be on another page, or back at the beginning
  const next = view.entries.findIndex((entry, at) => at > view.here && (entry.open || view.all));
  if (next >= 0) { go(next); mark(); return; }
  if (view.all && view.before + view.entries.length >= view.count) return;
  const last = current().place;
  await open(view.queue, { start: last + 1 });
  if (!view.entries.length && view.count) await open(view.queue);
}

function redraw(at) {
  const node = el("entries").children[at];
  if (node) node.replaceWith(drawEntry(view.entries[at], at));
}

function mark() {
  view.entries.forEach((_, at) => {
    const node = el("entries").children[at];
    if (node.classList.contains("here") || at === view.here) redraw(at);
  });
  const node = el("entries").children[view.here];
  if (view.entries.length) node.scrollIntoView({ block: "nearest" });
  drawLegend();
  history.replaceState(null, "", `?token=${encodeURIComponent(token)}#${view.queue}/${current() ? current().place : 0}${view.all ? "/all" : ""}`);
}

function point(at, place = null) {
  if (view.here === at && (place === null || place === view.chosen)) return;
  if (view.here !== at) go(at);
  if (place !== null) view.chosen = place;
  mark();
}

function able() {
  const image = chosenImage();
  if (image && image.decidable) return image;
  if (image) say(`${image.id} is a ${image.split} image without a label of yours: nothing is decided about it`, true);
  return null;
}
function keep() {
  const image = grouped() ? decidable(current())[0] : able();
  return image ? send("keep", image) : null;
}
function drop() { const image = able(); return image ? send("drop", image) : null; }
function only() {
  if (!grouped()) { say("o is for duplicates: k keeps this image", true); return null; }
  const image = able();
  return image ? send("only", image) : null;
}
function accept() {
  const image = able();
  if (!image) return null;
  const values = Object.fromEntries(takeable(image));
  if (Object.keys(values).length) return send("relabel", image, values);
  say("nothing is suggested here", true);
  return null;
}
function relabel() { const image = able(); if (image) choose(image); }
function digit(key) {
  if (grouped()) {
    if (current() && Number(key) >= 1 && Number(key) <= current().images.length) point(view.here, Number(key) - 1);
    return null;
  }
  const image = able();
  if (!image) return null;
  const head = activeHead(image), one = classOfDigit(head, key);
  if (head.kind === "multilabel") { say("an image may have several of these classes: r", true); return null; }
  if (!one) { say(`${key} stands for no class of ${head.name}: r chooses by typing`, true); return null; }
  return send("relabel", image, { [head.name]: one.value });
}
async function askRest() {
  view.state = await call("/api/state"); // another reviewer may have decided since
  drawHeader();
  const queue = queueNow(), number = queue ? queue.open : 0;
  if (!number) { say("nothing is left here", true); return; }
  view.rest = number;
  const what = grouped() ? plural(number, "group", "groups") : plural(number, "image", "images");
  el("resting").textContent = `Keep all that are left in "${queue.title}": ${what}?`;
  el("rest").showModal();
}
async function keepRest() {
  el("rest").close();
  const answer = await call("/api/keep_rest", { queue: view.queue, count: view.rest });
  await open(view.queue);
  say(answer.said);
}
async function undo() {
  const answer = await call("/api/undo", { queue: view.queue });
  const where = answer.where;
  if (where) await open(where.queue, { start: await firstOf(where), at: where.place });
  else await open(view.queue);
  say(answer.said);
}
async function firstOf(where) { // the page that is shown, where it holds the place
  const shown = where.queue === view.queue && view.entries.some((entry) => entry.place === where.place);
  return shown ? view.entries[0].place : where.place;
}
function move(step) {
  const next = view.here + step;
  if (next >= 0 && next < view.entries.length) { go(next); mark(); return null; }
  return turn(step);
}
function moveRow(step) { // up and down in the grid
  const tops = [...el("entries").children].map((node) => node.offsetTop);
  const columns = view.large ? 1 : Math.max(1, tops.filter((top) => top === tops[0]).length);
  const next = view.here + step * columns;
  return next >= 0 && next < view.entries.length ? move(step * columns) : null;
}
async function turn(step) {
  const { before, entries, count } = view;
  if (step > 0 && before + entries.length < count) await open(view.queue, { start: entries[entries.length - 1].place + 1 });
  else if (step < 0 && before > 0) await open(view.queue, { before: entries[0].place });
  else say(step > 0 ? "this is the last one" : "this is the first one");
}
function nextQueue() {
  const queues = view.state.queues, at = queues.findIndex((one) => one.name === view.queue);
  const others = [...queues.slice(at + 1), ...queues.slice(0, at)];
  const next = others.find((one) => one.open) || others[0];
  return next ? open(next.name) : null;
}
function nextHead() {
  const image = able();
  if (!image || !several()) return;
  const at = heads().indexOf(activeHead(image));
  view.head = heads()[(at + 1) % heads().length].name;
  mark();
}
function enlarge(large = !view.large) {
  view.large = large;
  document.body.classList.toggle("large", view.large);
  el("large").setAttribute("aria-pressed", String(view.large));
  mark();
}

const moving = new Set(["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "j", "i"]); // any other key that is held acts once
let typing = false; // whether the key that is held was pressed in the chooser
const does = {
  ArrowRight: () => move(1), j: () => move(1), ArrowLeft: () => move(-1), i: () => move(-1),
  ArrowDown: () => moveRow(1), ArrowUp: () => moveRow(-1), a: accept, k: keep, d: drop, o: only, r: relabel, u: undo, q: nextQueue,
  h: nextHead, K: askRest, z: () => enlarge(), "[": () => turn(-1), "]": () => turn(1), "?": () => el("keys").showModal(),
};

function press(key, shifted, late = false) { // late: it waited, and no input has taken it meanwhile
  if (el("chooser").open) {
    if (chooserKey(key, shifted)) return true;
    if (late && key.length === 1) { el("wanted").value += key; list(); }
    if (late && key === "Escape") el("chooser").close();
    return false;
  }
  if (el("rest").open) {
    if (key === "y") trying(keepRest);
    if (late && key === "Escape") el("rest").close();
    return key === "y";
  }
  if (el("keys").open) { if (key === "?") el("keys").close(); return key === "?"; }
  const work = does[key] || (/^[0-9]$/.test(key) ? () => digit(key) : null);
  if (work) trying(work);
  return Boolean(work);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (!event.repeat) typing = el("chooser").open;
  else if (!moving.has(event.key) && (!typing || event.key === "Enter")) { event.preventDefault(); return; }
  if (busy) { pressed.push([event.key, event.shiftKey]); event.preventDefault(); return; }
  if (event.target.tagName === "BUTTON" && event.key === "Enter" && !el("chooser").open) return;
  if (press(event.key, event.shiftKey)) event.preventDefault();
});
el("entries").addEventListener("dblclick", () => enlarge(true));
const wire = (id, work) => { el(id).onclick = () => { el(id).blur(); trying(work); }; };
wire("previous", () => turn(-1));
wire("next", () => turn(1));
wire("undo", undo);
wire("large", () => enlarge());
wire("keep-rest", askRest);
wire("rest-yes", keepRest);
wire("rest-no", () => el("rest").close());
wire("help", () => el("keys").showModal());
el("all").onchange = () => {
  view.all = el("all").checked;
  el("all").blur();
  trying(() => open(view.queue));
};

el("queues").addEventListener("scroll", fadeQueues);
window.addEventListener("resize", fadeQueues);

trying(async () => {
  const [asked, place, all] = location.hash.slice(1).split("/");
  view.state = await call("/api/state");
  view.all = el("all").checked = all === "all";
  const first = view.state.queues.find((one) => one.open) || view.state.queues[0];
  const known = view.state.queues.some((one) => one.name === asked);
  if (known) await open(asked, { start: Number(place) || 0 });
  else await open(first ? first.name : "");
  if (known && !view.entries.length && view.count) await open(asked);
});

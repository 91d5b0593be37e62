"use strict";
// What is shown: the queues, and the entries of a page of one of them.
const PAGE = 24, GROUPS = 8, AT_ONCE = 3, KEPT = 300, AGAIN_MS = 700;
const token = new URLSearchParams(location.search).get("token") || "";
const view = {
  state: null, queue: "", entries: [], before: 0, count: 0, here: 0, chosen: 0, head: "", all: false, large: false,
};
const el = (id) => document.getElementById(id);
const plural = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

function say(text, wrong = false) {
  el("said").textContent = text;
  el("said").className = wrong ? "wrong" : "";
}

async function call(address, body) {
  const options = { headers: { "x-kaggle-kit-token": token } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try { answer = await fetch(address, options); }
  catch { throw new Error("kaggle-kit review has ended; start it again and open its new address: nothing decided is lost"); }
  const text = await answer.text();
  let values;
  try { values = JSON.parse(text); } catch { values = { error: text }; }
  if (!answer.ok) throw new Error(values.error || text);
  return values;
}

// Heads and classes
const heads = () => view.state.heads;
const headOf = (name) => heads().find((head) => head.name === name);
const several = () => heads().length > 1;
const partsOf = (head, value) => (head.kind === "multilabel" ? value.split(head.separator) : [value]).filter((part) => part);
const nameOf = (head, value) => {
  const names = partsOf(head, value).map((part) => (head.classes.find((one) => one.value === part) || { name: part }).name);
  return names.join(", ") || (head.kind === "multilabel" ? "none" : "not known");
};
const nowOf = (image, head) => image.edited[head.name] ?? image.labels[head.name];
function activeHead(image) {
  const asked = image.found.find((one) => one.head && one.open && headOf(one.head));
  return headOf(view.head) || (asked && headOf(asked.head)) || heads()[0];
}
function classOfDigit(head, digit) { // classes that are called by digits are meant by them, whatever their place
  const named = head.classes.filter((one) => /^\d$/.test(one.value) || /^\d$/.test(one.name));
  if (named.length) return named.find((one) => one.value === digit || one.name === digit);
  return head.classes[Number(digit) - 1];
}

// Queues
const queueNow = () => view.state.queues.find((one) => one.name === view.queue);
const grouped = () => Boolean(queueNow() && queueNow().grouped);
const current = () => view.entries[view.here];
const decidable = (entry) => (entry ? entry.images.filter((image) => image.decidable) : []);
const chosenImage = () => {
  const entry = current();
  if (!entry) return null;
  return grouped() ? entry.images[view.chosen] : entry.images[0];
};

function drawHeader() {
  el("title").textContent = `Review of ${view.state.task}`;
  document.title = el("title").textContent;
  el("where").textContent = `${plural(view.state.decisions, "image", "images")} decided, in ${view.state.file}`;
  el("queues").replaceChildren(...view.state.queues.map((queue) => make("button", {
    className: queue.name === view.queue ? "here" : "",
    title: `${queue.open.toLocaleString("en")} open of ${queue.count.toLocaleString("en")}`,
    onclick: () => trying(() => open(queue.name)),
  }, queue.title, make("span", {
    className: queue.open ? "left" : "left none", textContent: queue.open ? queue.open.toLocaleString("en") : "✓",
  }))));
  const here = el("queues").querySelector(".here");
  if (here) here.scrollIntoView({ block: "nearest", inline: "nearest" });
  fadeQueues();
}
function fadeQueues() { // where there are more than fit
  const { scrollLeft, scrollWidth, clientWidth, classList } = el("queues");
  classList.toggle("before", scrollLeft > 4);
  classList.toggle("after", scrollLeft + clientWidth < scrollWidth - 4);
}
function drawRest() {
  el("keep-rest").hidden = !queueNow() || queueNow().open < 2;
}

async function open(queue, { start = 0, before = null, at = null } = {}) {
  view.state = await call("/api/state");
  view.queue = queue;
  const where = before === null ? `start=${start}` : `before=${before}`, size = grouped() ? GROUPS : PAGE;
  const page = queueNow() ? await call(`/api/queue/${queue}?${where}&size=${size}&all=${view.all ? 1 : 0}`) : null;
  Object.assign(view, page || { entries: [], before: 0, count: 0 });
  view.head = "";
  go(view.entries.findLastIndex((entry) => (before === null ? entry.place === at : entry.place < before)));
  draw();
  window.scrollTo(0, 0);
  mark();
}

function go(place) {
  view.here = Math.max(0, Math.min(place, view.entries.length - 1));
  view.head = "";
  view.chosen = Math.max(0, current() ? current().images.findIndex((image) => image.decidable) : 0);
}

function draw() {
  drawHeader();
  el("entries").className = grouped() ? "grouped" : "";
  el("entries").replaceChildren(...view.entries.map(drawEntry));
  if (!view.entries.length) el("entries").replaceChildren(drawNothing());
  const last = view.before + view.entries.length;
  el("place").textContent = view.count ? `${(view.before + 1).toLocaleString("en")}-${last.toLocaleString("en")} of ${view.count.toLocaleString("en")}` : "";
  el("previous").disabled = view.before === 0;
  el("next").disabled = last >= view.count;
  drawRest();
  el("question").textContent = queueNow() ? queueNow().question : "";
  drawLegend();
}

function drawLegend() {
  const image = chosenImage(), head = image && image.decidable ? activeHead(image) : null;
  const digits = head && !grouped() && head.kind !== "multilabel" ? [..."1234567890"] : [];
  const known = digits.map((digit) => [digit, classOfDigit(head, digit)]).filter(([, one]) => one);
  const plain = known.every(([digit, one]) => one.name === digit), rest = head ? head.classes.length - known.length : 0;
  const parts = plain ? [] : known.map(([digit, one]) => make("span", {}, make("b", {}, digit), one.name));
  const more = known.length && rest > 0 ? [make("span", {}, plain ? "others than digits:" : "others:", make("b", { className: "key" }, "r"))] : [];
  const title = several() && head && parts.length + more.length ? [make("span", {}, `${head.name}:`)] : [];
  el("legend").replaceChildren(...title, ...parts, ...more);
}

function drawNothing() {
  const waiting = view.state.queues.find((one) => one.open > 0);
  const [title, text] = waiting
    ? ["Nothing is open here.", `Go on with ${waiting.title} (q).`]
    : view.state.queues.length
      ? ["All is decided.", "End kaggle-kit review with Ctrl-C in its terminal; folds and train take the file by edits."]
      : ["The audit found nothing to decide.", "With kaggle-kit audit --oof RUN it looks for wrong labels, too."];
  return make("div", { className: "nothing" }, make("b", {}, title), text);
}

// An entry
function drawEntry(entry, at) {
  const images = entry.images.map((image, place) => drawImage(entry, image, at, place));
  const more = entry.count - entry.images.length;
  const inside = grouped() ? make("div", { className: "group" }, ...images) : images[0];
  return make("article", {
    className: `entry${at === view.here ? " here" : ""}${entry.open ? "" : " settled"}`, onclick: () => point(at),
  }, inside, more > 0 ? make("p", { className: "found" }, `and ${more.toLocaleString("en")} more like these`) : null,
  entry.note ? make("p", { className: "found" }, entry.note) : null, drawDoing(entry, at));
}

const takeable = (image) => Object.entries(image.suggested).filter(([name, value]) => {
  const head = headOf(name);
  return head && nowOf(image, head) !== value;
});

function drawDoing(entry, at) {
  const box = make("div", { className: "doing" });
  const add = (label, key, work, kind = "") => box.append(make("button", {
    className: kind, onclick: (event) => { event.stopPropagation(); point(at, view.here === at ? view.chosen : null); trying(work); },
  }, label, make("kbd", {}, key)));
  const able = decidable(entry);
  if (!able.length) return box;
  if (grouped()) {
    if (entry.count > 1 && able.length > 1) add("Keep only the chosen one", "o", only, "good");
    add(able.length > 1 ? "Keep all" : "Keep", "k", keep);
  } else {
    if (takeable(able[0]).length) add("Accept", "a", accept, "good");
    add("Keep", "k", keep);
  }
  add("Relabel", "r", relabel);
  add(grouped() && able.length > 1 ? "Drop the chosen one" : "Drop", "d", drop, "bad");
  return box;
}

function drawImage(entry, image, at, place) {
  const name = make("div", { className: "name" },
    grouped() && entry.images.length < 10 ? make("span", { className: "number" }, String(place + 1)) : null,
    make("span", { className: "id" }, image.id),
    image.split === "test" ? make("span", { className: "number" }, "test") : null,
    image.size ? make("span", { className: "size" }, `${image.size[1]} × ${image.size[0]} ${image.mode}`) : null,
    drawState(image));
  return make("div", {
    className: `picture${image.dropped ? " dropped" : ""}${grouped() && at === view.here && place === view.chosen ? " chosen" : ""}`,
    onclick: (event) => { event.stopPropagation(); point(at, place); },
  }, drawFrame(image), name, drawLabels(image, at, place), ...drawFound(image));
}

function drawState(image) {
  const text = image.dropped ? "dropped" : Object.keys(image.edited).length ? "relabelled" : image.kept ? "kept" : "";
  return text ? make("span", { className: `state ${text}` }, text) : null;
}

function drawLabels(image, at, place) {
  if (!image.decidable) return null;
  const active = activeHead(image);
  return make("div", { className: "labels" }, ...heads().map((head) => {
    const before = image.labels[head.name], now = nowOf(image, head), suggested = image.suggested[head.name];
    const asks = suggested !== undefined && suggested !== now;
    return make("button", {
      className: `label${head === active && several() && at === view.here && place === (grouped() ? view.chosen : 0) ? " active" : ""}`,
      title: "Choose a class", tabIndex: -1,
      onclick: (event) => { event.stopPropagation(); point(at, place); view.head = head.name; trying(relabel); },
    },
    several() ? make("span", { className: "head" }, head.name) : null,
    now === before ? null : make("span", { className: "was" }, nameOf(head, before)),
    make("span", { className: now === before ? "" : "is" }, nameOf(head, now)),
    asks ? make("span", { className: "or" }, `or ${nameOf(head, suggested)}?`) : null);
  }));
}

function drawFound(image) {
  const lines = image.found.map((one) => {
    const head = several() && one.head ? `${one.head}: ` : "";
    return one.detail ? `${head}${one.detail}` : `${head}${one.kind}`;
  });
  return [...new Set(lines)].filter((line) => line !== image.broken).map((line) => make("p", { className: "found" }, line));
}

// Pictures: the small one at once, then the whole one, a few at a time so that decisions never wait for them
const pictures = new Map(), waiting = [];
let loading = 0;
function drawFrame(image) {
  if (image.broken) return make("div", { className: "frame" }, make("p", {}, image.broken));
  const known = pictures.get(image.row);
  const img = make("img", {
    alt: image.id, loading: "lazy", className: known ? "" : "rough",
    src: known || `/thumbnail/${image.row}?token=${encodeURIComponent(token)}`,
  });
  if (!known) { img.row = image.row; seen.observe(img); }
  return make("div", { className: "frame" }, img);
}
const seen = new IntersectionObserver((changes) => {
  for (const { isIntersecting, target } of changes) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    waiting.push(target);
  }
  load();
}, { rootMargin: "500px" });

async function load() {
  while (loading < AT_ONCE && waiting.length) {
    const img = waiting.shift();
    if (!img.isConnected) continue;
    loading += 1;
    fetchPicture(img).finally(() => { loading -= 1; load(); });
  }
}
async function fetchPicture(img) {
  if (!pictures.has(img.row)) {
    let answer;
    try { answer = await fetch(`/image/${img.row}`, { headers: { "x-kaggle-kit-token": token } }); } catch { return; }
    if (answer.status === 202) { setTimeout(() => { waiting.push(img); load(); }, AGAIN_MS); return; }
    if (!answer.ok) { img.replaceWith(make("p", {}, JSON.parse(await answer.text()).error)); return; }
    pictures.set(img.row, URL.createObjectURL(await answer.blob()));
    if (pictures.size > KEPT) {
      const [oldest, address] = pictures.entries().next().value;
      pictures.delete(oldest);
      URL.revokeObjectURL(address);
    }
  }
  img.src = pictures.get(img.row);
  img.className = "";
}

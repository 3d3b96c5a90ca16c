"use strict";
// A blind pairwise study. The plan stands in the page; all that changes is `state`, which the
// browser keeps. What is shown follows from the rater's random name and the number of answers.

const plan = JSON.parse(document.getElementById("plan").textContent);
const SLOT = "study " + plan.study; // its place in the browser's memory
const COLUMNS = ["study", "rater", "number", "of", "pair", "showing", "prompt", "seed", "left",
  "right", "question", "answer", "milliseconds", "time"];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "equal", x: "unclear", X: "unclear" };
const PAUSE = 300; // milliseconds before a new question takes answers: a double click is one
const SIDEWAYS = matchMedia("(orientation: landscape) and (max-height: 30rem)"); // as in page.css
const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------- randomness

// Numbers in [0, 1) that follow from a text: FNV-1a, then Marsaglia's xorshift (2003).
function randomOf(text) {
  let x = 2166136261;
  for (const letter of text) x = Math.imul(x ^ letter.codePointAt(0), 16777619);
  x = x || 1;
  const next = () => {
    x ^= x << 13; x ^= x >>> 17; x ^= x << 5;
    return (x >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 20; i++) next(); // texts that differ little start alike
  return next;
}

function shuffled(list, random) {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

// What one rater sees, in order. One pair of each block is swapped, so sides are balanced. The
// repeated pairs come first in the first half, and with their sides swapped in the last third.
function sequence(rater) {
  const random = randomOf(plan.study + " " + rater);
  const shown = (p, swap) => {
    const [left, right] = swap ? [p.pictures[1], p.pictures[0]] : p.pictures;
    return { pair: p.pair, text: p.text, seed: p.seed, showing: 1, left, right };
  };
  const every = plan.blocks.flatMap((block) => {
    const swapped = Math.floor(random() * block.length);
    return block.map((p, i) => shown(p, i === swapped));
  });
  const again = (trial) => plan.repeats.includes(trial.pair);
  const order = shuffled(every, random), half = Math.floor(order.length / 2);
  const late = order.slice(half).filter(again);
  const free = shuffled(order.slice(0, half).filter((t) => !again(t)), random);
  late.forEach((trial, i) => {
    const [a, b] = [order.indexOf(trial), order.indexOf(free[i])];
    [order[a], order[b]] = [order[b], order[a]];
  });
  const from = Math.ceil((2 * order.length) / 3);
  for (const t of order.filter(again)) {
    const place = from + Math.floor(random() * (order.length - from + 1));
    order.splice(place, 0, { ...t, showing: 2, left: t.right, right: t.left });
  }
  return order;
}

// --------------------------------------------------------------------------------------- memory

function newState() {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  const rater = "r" + [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return { rater, agreed: null, ready: false, answers: [] };
}

function remembered() {
  try {
    const state = JSON.parse(localStorage.getItem(SLOT));
    const whole = state && typeof state.rater === "string" && Array.isArray(state.answers);
    return whole ? state : newState();
  } catch {
    return newState();
  }
}

function remember() {
  try {
    localStorage.setItem(SLOT, JSON.stringify(state));
  } catch {
    notice("This browser keeps nothing, perhaps because its window is private. " +
      "Answer all questions without closing the page, or your answers are lost.");
  }
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

let state = remembered();
let trials = sequence(state.rater);
let helping = false, showing = "", shownAt = 0, turn = 0;

// ---------------------------------------------------------------------------------------- screens

const total = () => trials.length * plan.questions.length;

function render() {
  const n = state.answers.length;
  const screen = !state.agreed ? "welcome" : !state.ready || helping ? "guide"
    : n < total() ? "trial" : "done";
  for (const id of ["welcome", "guide", "trial", "done"]) $(id).hidden = id !== screen;
  $("start").textContent = n ? "Go on" : "Start";
  turn += 1; // what still loads for an earlier question arms nothing any more
  if (screen === "trial") ask(n);
  if (screen === "done") $("csv").value = csv();
  if (screen !== "trial") showing = "";
  scrollTo(0, 0);
  document.activeElement?.blur(); // a heading that has the focus already would not be read out again
  $(screen).querySelector("h1").focus({ preventScroll: true });
}

function ask(n) {
  const trial = trials[Math.floor(n / plan.questions.length)];
  const j = n % plan.questions.length, question = plan.questions[j];
  const withText = question.id === "follows";
  $("bar").style.width = (100 * n) / total() + "%";
  const place = [`Pair ${Math.floor(n / plan.questions.length) + 1} of ${trials.length}`,
    `Question ${j + 1} of ${plan.questions.length}`];
  $("place").replaceChildren(...place.map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  }));
  $("question").textContent = question.text;
  $("text").textContent = withText ? "“" + trial.text + "”" : "Judge only how they look. The text comes next.";
  $("text").classList.toggle("shown", withText);
  const asking = document.querySelector(".asking");
  asking.classList.remove("fresh");
  void asking.offsetWidth; // so that the animation starts again
  asking.classList.add("fresh");
  $("back").disabled = n === 0;
  arm(false);
  load(trial, turn);
}

function arm(on, only) {
  for (const button of document.querySelectorAll("[data-answer]"))
    button.disabled = !on || (only !== undefined && button.dataset.answer !== only);
}

// The buttons arm a moment after both pictures are there, decoded, and of one size.
async function load(trial, mine) {
  const name = trial.left + " " + trial.right;
  if (showing !== name) {
    showing = name;
    $("pictures").classList.remove("shown");
    $("left").src = "pictures/" + trial.left;
    $("right").src = "pictures/" + trial.right;
  }
  fit();
  const both = [$("left"), $("right")];
  try {
    await Promise.all(both.map((image) => image.decode()));
    if (both.some((image) => image.naturalWidth !== plan.size[0] || image.naturalHeight !== plan.size[1]))
      throw new Error("another size");
  } catch {
    if (mine !== turn) return;
    notice("A picture of this pair cannot be shown. Reload the page to try again, or choose “Cannot tell”.");
    showing = "";
    shownAt = performance.now();
    arm(true, "unclear");
    return;
  }
  if (mine !== turn) return;
  if ($("notice").textContent.startsWith("A picture")) notice("");
  $("pictures").classList.add("shown");
  shownAt = performance.now();
  const next = trials[trials.indexOf(trial) + 1];
  if (next) for (const file of [next.left, next.right]) new Image().src = "pictures/" + file;
  await new Promise((done) => setTimeout(done, PAUSE));
  if (mine === turn) arm(true);
}

// Both pictures at one magnification: a whole number of the screen's pixels for each of theirs, or
// a whole number of theirs for each of the screen's.
function fit() {
  const [w, h] = plan.size, ratio = devicePixelRatio || 1;
  const phone = innerWidth <= 640, gap = phone ? 8 : 16;
  const [beside, below] = SIDEWAYS.matches ? [250, 60] : [0, phone ? 400 : 350]; // what is no picture
  const wide = (document.documentElement.clientWidth - beside - 3 * gap) / 2;
  const high = Math.max(120, innerHeight - below);
  const most = Math.min((wide * ratio) / w, (high * ratio) / h, (640 * ratio) / Math.max(w, h));
  const factor = most >= 1 ? Math.floor(most) : 1 / Math.ceil(1 / most);
  for (const id of ["left", "right"]) {
    $(id).style.width = (w * factor) / ratio + "px";
    $(id).style.height = (h * factor) / ratio + "px";
  }
  document.querySelector(".choices").style.maxWidth =
    SIDEWAYS.matches ? "" : Math.max(480, (2 * w * factor) / ratio + gap) + "px";
}

// ---------------------------------------------------------------------------------------- answers

function answer(what) {
  const button = document.querySelector(`[data-answer="${what}"]`);
  if (button.disabled) return;
  const milliseconds = Math.round(performance.now() - shownAt);
  state.answers.push({ answer: what, milliseconds, time: new Date().toISOString() });
  remember();
  render();
}

function back() {
  if (!state.answers.length) return;
  state.answers.pop();
  remember();
  render();
}

const cell = (value) => (/[",\r\n]/.test(value) ? '"' + String(value).replaceAll('"', '""') + '"' : value);

function csv() {
  const lines = state.answers.map((given, i) => {
    const t = trials[Math.floor(i / plan.questions.length)];
    return [plan.study, state.rater, i + 1, total(), t.pair, t.showing, t.text, t.seed, t.left,
      t.right, plan.questions[i % plan.questions.length].id, given.answer, given.milliseconds, given.time];
  });
  return [COLUMNS, ...lines].map((line) => line.map(cell).join(",") + "\r\n").join("");
}

function save() {
  const link = document.createElement("a");
  const name = `answers-${plan.study}-${state.rater}.csv`;
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("saved").textContent = `Saved as ${name}, in the downloads of this browser.`;
}

// ------------------------------------------------------------------------------------------ events

for (const at of document.querySelectorAll("[data-fill]"))
  at.textContent = { pairs: trials.length, minutes: plan.minutes, contact: plan.contact, answers: total() }[at.dataset.fill];
for (const button of document.querySelectorAll("[data-answer]"))
  button.addEventListener("click", () => answer(button.dataset.answer));
$("agree").addEventListener("change", () => {
  $("begin").disabled = !$("agree").checked;
  $("hint").style.visibility = $("agree").checked ? "hidden" : "visible";
});
$("begin").addEventListener("click", () => { state.agreed = new Date().toISOString(); remember(); render(); });
$("start").addEventListener("click", () => { state.ready = true; helping = false; remember(); render(); });
$("help").addEventListener("click", () => { helping = true; render(); });
$("back").addEventListener("click", back);
$("again").addEventListener("click", back);
$("save").addEventListener("click", save);
$("csv").addEventListener("focus", () => $("csv").select());
$("forget").addEventListener("click", () => {
  if (!confirm("Delete all your answers from this browser? They cannot be brought back.")) return;
  localStorage.removeItem(SLOT);
  location.reload();
});
document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const what = KEYS[event.key];
  if (!what && event.key !== "Backspace") return;
  event.preventDefault(); // no scrolling
  if (event.repeat) return; // a key that is held down answers once
  if (what) answer(what);
  else back();
});
addEventListener("resize", fit);
addEventListener("storage", (event) => { // the study is open in another tab as well
  if (event.key !== SLOT && event.key !== null) return;
  state = remembered();
  trials = sequence(state.rater);
  render();
});

render();

"""The search page: what a browser shows. Everything from data is set as text, never as markup; nothing is loaded from elsewhere."""

HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Search - vlm_jax</title>
<link rel="stylesheet" href="/page.css">
<script src="/page.js" defer></script>
</head>
<body>
<header>
  <h1>Search</h1>
  <p class="soft" id="facts">&nbsp;</p>
</header>
<main>
  <form id="form" autocomplete="off">
    <label for="text" class="hidden">What to look for</label>
    <input id="text" type="search" maxlength="1000" placeholder="Describe an image" enterkeyhint="search" autofocus>
    <button type="submit">Search</button>
  </form>
  <div class="ask">
    <label id="drop" class="drop">
      <input id="file" type="file" accept="image/*" class="hidden">
      <img id="preview" alt="" hidden>
      <span id="hint">Drop, paste or <u>choose an image</u> to find its like</span>
      <span id="dropped" hidden></span>
    </label>
    <div class="labels">
      <label for="labels">Labels to choose among, one a line</label>
      <textarea id="labels" rows="4" spellcheck="false" placeholder="a dog&#10;a cat"></textarea>
    </div>
  </div>
  <p id="status" role="status" aria-live="polite"></p>
  <progress id="progress" hidden></progress>
  <section id="classes" hidden><h2>Labels</h2><ol id="shares"></ol></section>
  <section id="captions" hidden><h2>Captions</h2><ol id="sentences"></ol></section>
  <section id="found" hidden><h2>Images</h2><div id="grid"></div></section>
</main>
<footer class="soft">Numbers are cosines. Choose an image of the list to find its like. Nothing leaves this machine.</footer>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f5f6f8; --ink: #16191d; --soft: #5c6570; --line: #d9dde3;
  --accent: #2b63d9; --on: #ffffff; --wrong: #b3420a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #101317; --raised: #1a1f26; --ink: #e8eaed; --soft: #98a2ae; --line: #343b45;
    --accent: #7ba4ff; --on: #101317; --wrong: #f0904d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 36px 24px 56px; max-width: 1136px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 { font-size: 26px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0; }
h2 { font-size: 15px; font-weight: 600; margin: 28px 0 12px; }
p { margin: 0; } header { margin-bottom: 22px; } header p { font-size: 14px; margin-top: 4px; }
.soft { color: var(--soft); } [hidden] { display: none !important; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
form { display: flex; gap: 10px; }
input[type=search], textarea {
  width: 100%; min-width: 0; font: inherit; color: inherit; background: var(--ground); border: 1px solid var(--line);
  border-radius: 10px; padding: 11px 14px; appearance: none;
}
input::placeholder, textarea::placeholder { color: var(--soft); opacity: .8; }
textarea { display: block; resize: vertical; font-size: 14px; padding: 9px 12px; }
button[type=submit] {
  font: inherit; font-weight: 600; border: 0; border-radius: 10px; padding: 0 20px; min-height: 46px; flex: none; white-space: nowrap;
  background: var(--accent); color: var(--on); cursor: pointer;
}
:is(input[type=search], textarea, button):focus-visible, .drop:focus-within { outline: 2px solid var(--accent); outline-offset: 2px; }
.ask { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; margin-top: 14px; align-items: stretch; }
.drop {
  display: flex; align-items: center; justify-content: center; gap: 14px; min-height: 104px; padding: 14px; text-align: center;
  border: 1.5px dashed var(--line); border-radius: 10px; color: var(--soft); cursor: pointer; font-size: 14px;
}
.drop:hover, .drop.over { border-color: var(--accent); color: var(--ink); } .drop.over { background: var(--raised); }
.drop img { height: 76px; max-width: 40%; border-radius: 6px; object-fit: contain; }
.labels { display: flex; flex-direction: column; } .labels label { font-size: 13px; color: var(--soft); margin-bottom: 4px; }
.labels textarea { flex: 1; }
#status { margin-top: 18px; min-height: 24px; font-size: 14px; color: var(--soft); } #status.wrong { color: var(--wrong); }
progress { width: 100%; height: 6px; margin-top: 8px; accent-color: var(--accent); }
ol { list-style: none; margin: 0; padding: 0; font-size: 14px; }
li { display: flex; gap: 12px; align-items: center; padding: 6px 0; border-top: 1px solid var(--line); }
li:first-child { border-top: 0; }
li span:first-child { flex: 1; } li .bar { flex: 0 1 240px; height: 8px; border-radius: 4px; background: var(--raised); overflow: hidden; }
li .bar i { display: block; height: 100%; background: var(--accent); border-radius: 4px; }
#classes ol, #captions ol { max-width: 760px; }
li b { font-weight: 600; min-width: 58px; text-align: right; } li .number { min-width: 48px; text-align: right; color: var(--soft); }
#grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 14px; align-items: start; }
.hit {
  display: block; width: 100%; padding: 0; border: 0; background: none; color: inherit; font: inherit; text-align: left; cursor: pointer;
}
.hit:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 8px; }
.hit img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--raised); border-radius: 8px; }
.hit:hover img { filter: brightness(1.06); }
.hit b { display: block; font-size: 13px; font-weight: 600; margin-top: 6px; }
.hit span {
  display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden;
  font-size: 13px; line-height: 1.4; color: var(--soft);
}
.waiting #grid { opacity: .5; }
footer { margin-top: 44px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 13px; }
@media (max-width: 640px) {
  body { padding: 22px 16px 40px; }
  .ask { grid-template-columns: 1fr; } .drop { min-height: 84px; }
  #grid { grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 14px 10px; }
  button[type=submit] { padding: 0 16px; } li .bar { flex-basis: 72px; }
}
"""

SCRIPT = """
"use strict";
const $ = id => document.getElementById(id);
let limit = 10 * 2 ** 20, asked = 0, shown = null;

function say(words, wrong) {
  $("status").textContent = words;
  $("status").classList.toggle("wrong", Boolean(wrong));
}

function line(...parts) {
  const item = document.createElement("li");
  item.append(...parts);
  return item;
}

function made(kind, text, name) {
  const element = document.createElement(kind);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function percent(share) {
  return (100 * share).toFixed(1) + " %";
}

function show(answer) {
  $("found").hidden = false;
  $("grid").replaceChildren(...answer.images.map(hit => {
    const button = made("button", undefined, "hit"), image = made("img");
    button.type = "button";
    image.src = "/image/" + hit.index;
    image.alt = hit.caption || "image " + hit.index;
    image.loading = "lazy";
    button.append(image, made("b", hit.score.toFixed(3)), made("span", hit.caption));
    button.addEventListener("click", () => {
      dropped(null);
      ask("/like", JSON.stringify({index: hit.index}), "application/json", {}, "closest to that image");
      scrollTo({top: 0, behavior: "smooth"});
    });
    return button;
  }));
  const captions = answer.captions || [], labels = answer.labels || [];
  $("captions").hidden = !captions.length;
  $("sentences").replaceChildren(...captions.map(c => line(made("span", c.text), made("span", c.score.toFixed(3), "number"))));
  $("classes").hidden = !labels.length;
  $("shares").replaceChildren(...labels.map(label => {
    const bar = made("span", undefined, "bar"), fill = made("i");
    fill.style.width = percent(label.share).replace(" ", "");
    bar.append(fill);
    return line(made("span", label.text), bar, made("b", percent(label.share)), made("span", label.score.toFixed(3), "number"));
  }));
}

async function ask(path, body, kind, headers, words) {
  const number = ++asked, began = performance.now();
  document.body.classList.add("waiting");
  say("Searching ...");
  try {
    const reply = await fetch(path, {method: "POST", body, headers: {"Content-Type": kind, ...headers}});
    const answer = await reply.json();
    if (number !== asked) return;
    if (!reply.ok) return say(answer.error, true);
    show(answer);
    const all = Math.round(performance.now() - began), own = Math.max(1, Math.round(1000 * answer.seconds));
    say(`The ${answer.images.length} images ${words}, found in ${own} ms (shown after ${Math.max(all, own)} ms).`);
  } catch (error) {
    if (number === asked) say("The page's program does not answer; is it still running?", true);
  } finally {
    if (number === asked) document.body.classList.remove("waiting");
  }
}

function dropped(file) {
  shown = file;
  if ($("preview").src) URL.revokeObjectURL($("preview").src);
  $("preview").hidden = !file;
  if (file) $("preview").src = URL.createObjectURL(file);
  else $("preview").removeAttribute("src");
  $("hint").hidden = Boolean(file);
  $("dropped").hidden = !file;
  $("dropped").textContent = file ? file.name || "pasted image" : "";
}

function search(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return say(`${file.name} is not an image.`, true);
  if (file.size > limit) {
    return say(`${file.name || "The image"} has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${limit / 2 ** 20} MB are taken.`, true);
  }
  const labels = $("labels").value.split("\\n").map(text => text.trim()).filter(Boolean);
  const headers = labels.length ? {"X-Labels": encodeURIComponent(JSON.stringify(labels))} : {};
  if ((headers["X-Labels"] || "").length > 60000) return say("These are more labels than can be sent; take some away.", true);
  dropped(file);
  $("text").value = "";
  ask("/image", file, "application/octet-stream", headers, "closest to yours");
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return $("text").focus();
  dropped(null);
  ask("/text", JSON.stringify({text}), "application/json", {}, "closest to those words");
});
$("file").addEventListener("change", () => { search($("file").files[0]); $("file").value = ""; });
$("labels").addEventListener("change", () => {
  if (shown) search(shown);
  else if ($("labels").value.trim()) say("Drop or choose an image, and it is classified among the labels.");
});
addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(f => f.type.startsWith("image/"));
  if (file) { event.preventDefault(); search(file); }
});
let inside = 0;
addEventListener("dragenter", event => { event.preventDefault(); inside++; $("drop").classList.add("over"); });
addEventListener("dragleave", () => { if (--inside <= 0) { inside = 0; $("drop").classList.remove("over"); } });
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => {
  event.preventDefault();
  inside = 0;
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) search(event.dataTransfer.files[0]);
});

async function watch() {
  let state;
  try {
    state = await (await fetch("/state")).json();
  } catch (error) {
    say("The page's program does not answer; is it still running?", true);
    return setTimeout(watch, 2000);
  }
  limit = state.upload;
  const total = state.total.toLocaleString("en");
  $("facts").textContent = `${state.model}, step ${state.step.toLocaleString("en")}, ${total} images of ${state.name}`;
  document.title = `Search ${state.name} - vlm_jax`;
  if (state.state === "failed") {
    $("progress").hidden = true;
    return say(state.error || "It was stopped.", true);
  }
  const ready = state.state === "ready";
  $("progress").hidden = ready;
  if (ready) return say(`Ready: ${total} images.`);
  $("progress").max = state.total;
  $("progress").value = state.done;
  say(`Embedding the images, ${state.done.toLocaleString("en")} of ${total} ...`);
  setTimeout(watch, 300);
}
watch();
"""

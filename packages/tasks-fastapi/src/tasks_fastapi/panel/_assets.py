"""The style sheet and the script of the page. Nothing comes from another host."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b1f24; --dim: #57606a; --line: #d8dee4;
  --accent: #0757ba; --bad: #b3261e; --good: #1a7f37; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --back: #0e1116; --card: #171b22; --text: #e6edf3; --dim: #9aa5b1;
  --line: #2e3640; --accent: #79b8ff; --bad: #ff8a80; --good: #6fdd8b; --warn: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, main { max-width: 1200px; margin: 0 auto; padding: 16px; }
header { display: flex; gap: 12px; align-items: baseline; flex-wrap: wrap; }
h1 { font-size: 20px; margin: 0; } h2 { font-size: 16px; margin: 14px 0 8px; } h2:first-child { margin-top: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; margin: 0 0 16px; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); } .warn { color: var(--warn); }
#live { min-width: 9em; }
dl { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0 0 10px; }
dl div { min-width: 84px; } dt { color: var(--dim); font-size: 13px; } dd { margin: 0; font-size: 20px; }
dd, td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
td .dim { overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; }
th { text-align: left; color: var(--dim); font-weight: 500; font-size: 13px; }
th, td { padding: 5px 10px 5px 0; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; }
form { display: inline-flex; gap: 6px; flex-wrap: wrap; align-items: center; margin: 0; }
form.filter { display: flex; margin: 0 0 10px; }
button, input, select, a.button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 4px 10px; min-height: 32px; max-width: 100%; }
button { cursor: pointer; } button:hover { border-color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
a { color: var(--accent); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--back); padding: 10px; border-radius: 6px;
  margin: 6px 0; font-size: 13px; }
svg { display: block; width: 120px; height: 28px; } svg polyline { fill: none; stroke: var(--accent); stroke-width: 2; }
.skip { position: absolute; left: -9999px; }
.skip:focus { left: 16px; top: 8px; background: var(--card); padding: 6px; }
@media (max-width: 640px) {
  header, main { padding: 10px; }
  table, tbody, tr, td { display: block; } thead { display: none; }
  tr { border-top: 1px solid var(--line); padding: 8px 0; }
  td, dd { overflow-wrap: anywhere; }
  td { border: 0; padding: 2px 0; display: grid; grid-template-columns: 104px minmax(0, 1fr); gap: 8px; }
  td::before { content: attr(data-label); color: var(--dim); }
}
"""

SCRIPT: Final = """
"use strict";
const live = document.getElementById("live");
let open = true;
function replace(parts) {
  for (const [id, html] of Object.entries(parts)) {
    const part = document.getElementById(id);
    // What has the focus, is open or is selected stays as it is: a person reads it, or is about to press it.
    if (!part || part.dataset.html === html || part.contains(document.activeElement)) continue;
    if (part.querySelector("details[open]")) continue;
    part.dataset.html = html;
    part.innerHTML = html;
  }
}
const events = new EventSource("events");
events.addEventListener("update", (event) => {
  replace(JSON.parse(event.data));
  live.textContent = "live";
  live.className = "good";
});
events.addEventListener("error", () => {
  setTimeout(() => {
    if (events.readyState === EventSource.OPEN) return;
    live.textContent = "not connected";
    live.className = "bad";
  }, 3000);
});
"""

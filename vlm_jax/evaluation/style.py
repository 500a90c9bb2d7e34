"""The style sheet of the report: one column of figures and tables, light and dark, on a phone as on a desk."""

_COLOURS = "\n".join(
    f".s{i} {{ stroke: var(--s{i}); fill: var(--s{i}); }} .line.s{i} {{ fill: none; }} .k{i} {{ background: var(--s{i}); }}\n"
    f"figure:has(.g{i}:hover) .points:not(.s{i}) {{ opacity: .12; }}"
    for i in range(12)
)

CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --raised: #f7f8fa; --ink: #16191d; --soft: #5c6570; --line: #e3e6ea;
  --right: #12805c; --wrong: #c2500c; --accent: #2b63d9;
  --s0: #2b63d9; --s1: #d9730d; --s2: #12805c; --s3: #9545b8; --s4: #b8324f; --s5: #0e7f95;
  --s6: #8a6d1b; --s7: #d6478f; --s8: #5b8c1a; --s9: #7a5236; --s10: #5a4fcf; --s11: #8b95a1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #101317; --raised: #181c22; --ink: #e8eaed; --soft: #98a2ae; --line: #2a3038;
    --right: #3ecf9a; --wrong: #f0904d; --accent: #7ba4ff;
    --s0: #7ba4ff; --s1: #f2a35e; --s2: #4fd1a1; --s3: #c78be6; --s4: #f2849a; --s5: #5cc8dc;
    --s6: #d9c15a; --s7: #ff9fcb; --s8: #a8d65c; --s9: #c9a184; --s10: #a59bff; --s11: #77818d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 40px 28px 72px; max-width: 1136px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
h1 { font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0; }
h2 { font-size: 19px; font-weight: 650; letter-spacing: -.01em; margin: 0 0 18px; }
h3 { font-size: 15px; font-weight: 600; margin: 0; }
h5 { font-size: 13px; font-weight: 600; margin: 20px 0 10px; } h5 span { font-weight: 400; }
h4 { font-size: 13px; font-weight: 600; margin: 28px 0 12px; color: var(--soft); }
p { margin: 0; }
.soft { color: var(--soft); }
.small { font-size: 13px; }
header { margin-bottom: 28px; }
header p { color: var(--soft); margin-top: 6px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 16px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { margin-top: 48px; padding-top: 28px; border-top: 1px solid var(--line); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px; }
a.tile { color: inherit; } a.tile:hover { text-decoration: none; outline: 1px solid var(--line); }
.tile small { font-size: 13px; line-height: 1.5; font-weight: 400; color: var(--soft); letter-spacing: 0; white-space: nowrap; }
.tile { background: var(--raised); border-radius: 10px; padding: 14px 16px 12px; }
.tile b { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 8px;
  font-size: 27px; line-height: 1.25; font-weight: 620; letter-spacing: -.02em; }
.tile span { display: block; font-size: 13px; color: var(--soft); }
.evaluation { margin-top: 28px; } .evaluation + .evaluation { margin-top: 48px; }
.evaluation > p { margin: 2px 0 12px; max-width: 110ch; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; font-size: 12px; color: var(--soft); padding: 0 12px 6px 0; }
td { padding: 6px 12px 6px 0; border-top: 1px solid var(--line); vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; }
td.n.value b { font-weight: 600; } .interval { color: var(--soft); font-size: 13px; }
td.bar { width: 42%; padding-left: 4px; }
td.bar svg { display: block; width: 100%; height: 12px; }
td .track { fill: var(--line); opacity: .55; }
td .fill { fill: var(--accent); }
td .range { fill: var(--accent); fill-opacity: .32; }
th.wrap { white-space: normal; vertical-align: bottom; overflow-wrap: normal; min-width: 76px; }
td.shots { min-width: 104px; } .count { white-space: nowrap; }
td.shots .interval { display: block; line-height: 1.3; } td.shots svg { display: block; width: 100%; height: 12px; margin-top: 2px; }
.mark.chance { fill: var(--ink); background: var(--ink); } .mark.blind { fill: var(--ground); stroke: var(--ink); stroke-width: 1.6; }
i.mark.chance { width: 2px; height: 12px; border-radius: 0; vertical-align: -2px; }
i.mark.blind { border: 1.6px solid var(--ink); background: var(--ground); }
i.mark.range { width: 18px; border-radius: 2px; background: var(--accent); opacity: .4; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 28px 24px; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; justify-content: space-between; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) 336px; gap: 28px 40px; align-items: start; }
.below { margin-top: 28px; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 14px; font-size: 13px; margin-bottom: 6px; }
figcaption b { font-weight: 600; }
.key { white-space: nowrap; color: var(--soft); }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; }
.key .square, .key .diamond { border-radius: 2px; } .key .diamond { transform: rotate(45deg) scale(.85); }
.key .dashed { width: 0; height: 12px; border-left: 2px dashed var(--ink); border-radius: 0; vertical-align: -2px; margin: 0 8px 0 4px; }
.key .accuracy { background: var(--accent); } .key .gap { background: var(--wrong); opacity: .5; }
figure > div { margin-bottom: 8px; } figure > div figcaption { margin-bottom: 2px; }
figure > p { margin-top: 8px; }
.figures { align-items: start; } .figures figure { display: block; }
.double { grid-column: span 2; grid-row: span 2; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 10.5px; font-family: inherit; }
.grid-line { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.band { stroke: none; fill-opacity: .16; }
.base { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 1 4; stroke-linecap: round; }
.base.blind { stroke-dasharray: 6 4; stroke-linecap: butt; opacity: .75; }
.chosen { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; }
svg text.axis { font-size: 10.5px; fill: var(--soft); font-style: italic; }
rect.accuracy { fill: var(--accent); } rect.gap { fill: var(--wrong); fill-opacity: .3; stroke: var(--wrong); stroke-width: .7; }
.points.points { stroke: none; fill-opacity: .62; } .points.rare { stroke: var(--raised); stroke-width: 1.4; fill-opacity: 1; }
.points.points > :hover { stroke: var(--ink); stroke-width: 1.5; fill-opacity: 1; }
.hover rect { fill: transparent; }
.hover .rule { stroke: var(--soft); stroke-width: 1; }
.hover .rule, .hover .dot { visibility: hidden; pointer-events: none; }
.hover:hover .rule, .hover:hover .dot { visibility: visible; }
@COLOURS@
.wide { overflow-x: auto; padding-bottom: 6px; }
.wide svg { display: block; }
.wide svg text { font-size: inherit; }
.fits svg { max-width: 100%; height: auto; }
.confusion { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px 48px; }
.confusion.narrow { grid-template-columns: max-content minmax(0, 1fr); }
svg text.share { fill: var(--ink); opacity: .8; pointer-events: none; }
.confusion h5 { margin-top: 0; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 16px 28px; font-size: 13px; }
.pair ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(62px, 1fr)); gap: 6px;
  list-style: none; margin: 4px 0 0; padding: 0; }
.pair .sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.pair .sides ol { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.pair p { font-weight: 600; } .pair p.wrong, .pair p.right { font-size: 12px; font-weight: 400; color: var(--wrong); margin-top: 2px; }
.pair p.right { color: var(--right); }
.pair li { font-size: 11px; color: var(--soft); } .pair li span { display: block; text-align: center; }
.halves { display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 24px 40px; margin-top: 16px; align-items: start; }
.bars > div { margin-bottom: 14px; } .bars p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; }
svg.stack { display: block; width: 100%; height: 16px; background: var(--raised); border-radius: 3px; } svg.stack rect { stroke: none; }
.ground { fill: var(--raised); }
.own { fill: none; stroke: var(--line); }
rect.right { fill: var(--right); } rect.wrong { fill: var(--wrong); }
.columns { columns: 2 300px; column-gap: 32px; list-style: none; margin: 0; padding: 0; font-size: 14px; }
.columns li { display: flex; justify-content: space-between; gap: 16px; padding: 4px 0; border-bottom: 1px solid var(--line);
  break-inside: avoid; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 22px 28px; }
.cards.long { grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
.card { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 4px 14px; align-items: start; font-size: 13px; line-height: 1.4; }
.card .query { grid-column: 1 / -1; font-size: 14px; margin-bottom: 4px; }
.card.strip { display: block; }
details.query { margin-top: 0; } .query summary { color: inherit; font-size: 14px; }
ol.context { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px 12px; list-style: none;
  margin: 8px 0; padding: 0; }
.context li { display: grid; grid-template-columns: 40px minmax(0, 1fr); gap: 8px; align-items: center; font-size: 12px; }
img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--raised);
  outline: 1px solid var(--line); outline-offset: -1px; }
ol.answers { list-style: none; margin: 0; padding: 0; }
ol.answers li { display: grid; grid-template-columns: 16px minmax(0, 1fr) auto; gap: 6px; padding: 2px 0; color: var(--soft); }
ol.answers li.right { color: var(--right); font-weight: 600; }
ol.answers .score { font-weight: 400; color: var(--soft); font-size: 12px; }
.strip ol { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 8px; list-style: none; margin: 6px 0 0; padding: 0; }
.strip li { color: var(--soft); font-size: 12px; }
.strip li img { margin-bottom: 5px; }
.strip li.right { color: var(--right); font-weight: 600; }
.strip li.right img { outline: 2px solid var(--right); outline-offset: 1px; }
bdi { unicode-bidi: isolate; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) minmax(0, 1fr); gap: 6px 24px; margin: 0; font-size: 14px; }
dl.short { display: block; columns: 3 260px; column-gap: 32px; }
dl.short dt, dl.short dd { display: inline; } dl.short dd::after { content: ""; display: block; margin-bottom: 6px; }
dl.short dt::after { content: "  "; white-space: pre; }
dt { color: var(--soft); } dd { margin: 0; }
details { margin-top: 24px; } details > p { margin: 12px 0; } 
.evaluation h4 + p { margin: -8px 0 12px; }
h2 + p.soft { margin: -12px 0 24px; }
summary { cursor: pointer; font-size: 14px; color: var(--accent); }
details > .grid { margin-top: 18px; }
pre { background: var(--raised); border-radius: 10px; padding: 16px; font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas,
  "DejaVu Sans Mono", monospace; overflow-x: auto; white-space: pre; margin: 12px 0 0; max-height: 70vh; }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; }
@media (max-width: 860px) {
  .beside, .halves, .confusion.narrow { grid-template-columns: minmax(0, 1fr); }
  .double { grid-column: auto; grid-row: auto; }
}
@media (max-width: 560px) {
  body { padding: 24px 16px 48px; }
  h1 { font-size: 23px; }
  section { margin-top: 36px; padding-top: 22px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile b { font-size: 22px; }
  .key { white-space: normal; }
  td.bar, th.bar { display: none; }
  td.value .interval { display: block; }
  .wide:has(> svg) { margin-right: -16px; }
  .card { grid-template-columns: 84px minmax(0, 1fr); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: 10px; }
}
@media print { .hover, nav { display: none; } pre { max-height: none; white-space: pre-wrap; } }
""".replace("@COLOURS@", _COLOURS)

"""The style sheet of the report."""

CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --accent: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #15181c; --accent: #8ab8f0; } }
:root {
  --muted: color-mix(in srgb, var(--ink) 68%, var(--paper));
  --line: color-mix(in srgb, var(--ink) 18%, var(--paper));
  --wash: color-mix(in srgb, var(--ink) 5%, var(--paper));
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
a { color: var(--accent); }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, ul { margin: .4rem 0; max-width: 46rem; }
nav ul { padding-left: 1.2rem; }
.muted, .missing { color: var(--muted); }
.scroll { overflow-x: auto; margin: .3rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { vertical-align: bottom; background: var(--wash); white-space: normal; }
th:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 7rem; max-width: 22rem; overflow-wrap: anywhere; }
tbody th { font-weight: 600; }
small { display: block; font-size: .78rem; font-weight: 400; color: var(--muted); }
@media (min-width: 40rem) {
  th:first-child { position: sticky; left: 0; background: var(--paper); }
  thead th:first-child { background: var(--wash); }
}
.swatch { width: 2rem; height: .6rem; margin-right: .5rem; vertical-align: middle; }
.key { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.25rem; }
figure { margin: 1rem 0; }
figcaption { font-size: .875rem; }
figure > svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
svg text { fill: currentColor; }
.det > svg, .det figcaption { max-width: 38rem; }
.table figcaption { color: var(--muted); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 0 1.25rem; }
.missing { font-style: italic; }
pre { background: var(--wash); padding: .6rem .8rem; font-size: .8rem; white-space: pre-wrap; margin: .4rem 0; }
"""

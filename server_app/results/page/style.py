"""The style of pages: light and dark, wide and narrow, on screen and on paper."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2126; --soft: #57606a; --line: #d5dae0; --card: #f4f6f8;
  --link: #0b62b8; --bad: #b3261e; --good: #126b34; --heat: #0b6bcb; --grid: #e4e8ec;
  --c0: #0b6bcb; --c1: #c2410c; --c2: #15803d; --c3: #a21caf; --c4: #92610a; --c5: #0e7490; --c6: #be123c; --c7:
  #57606a }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #a3adb7; --line: #3a424a;
  --card: #1e2327; --link: #7cbcff; --bad: #ff9b93; --good: #6fdc97; --heat: #3f8fe0; --grid: #2a3036;
  --c0: #6cb2ff; --c1: #ff9d5c; --c2: #5fd38a; --c3: #e58bf0; --c4: #e6c04a; --c5: #4fd0e0; --c6: #ff8fa3; --c7:
  #b6bec9 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
p { margin: .4rem 0 }
.lead { font-size: 1.1rem }
.soft, figcaption { color: var(--soft) }
.bad { color: var(--bad) }
.good { color: var(--good) }
a { color: var(--link) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0;
  padding: 0 }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.cards dt { color: var(--soft); font-size: .85rem }
.cards dd { margin: 0; font-size: 1.2rem; font-weight: 600 }
.cards dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft) }
.scroll { overflow-x: auto; max-width: 100% }
.scroll:focus-visible, svg:focus-visible { outline: 2px solid var(--link) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
td, th { white-space: nowrap; overflow-wrap: normal; padding: .2rem .7rem .2rem 0; text-align: right;
  vertical-align: top; border-bottom: 1px solid var(--line) }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom }
tbody th { font-weight: 600 }
th:first-child, .texts td, .texts th { text-align: left }
.texts td { white-space: pre-wrap; min-width: 10rem; max-width: 40rem }
.texts td, .texts th { overflow-wrap: anywhere }
.heat td { text-align: center; padding: .2rem .5rem; border: 1px solid var(--paper);
  background: color-mix(in srgb, var(--heat) calc(var(--s, 0) * 45%), var(--card)) }
.heat th { padding-right: .7rem }
.turns td { padding: 0; width: 1.1rem; min-width: 1.1rem; text-align: center; border: 1px solid var(--paper);
  background: var(--card) }
.turns thead th { padding: 0; text-align: center; font-size: .75rem }
.turns tbody th { padding-right: .7rem; white-space: nowrap }
.turns .in { color: var(--good) }
.turns .out { color: var(--bad) }
details { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; margin: .6rem 0 }
summary { cursor: pointer; font-weight: 600 }
figure { margin: .5rem 0 1rem; position: relative }
figure svg { width: 100%; height: auto; display: block; touch-action: pan-y }
.spark { width: 6rem; height: 1.4rem; stroke: var(--c0); stroke-width: 1.5; fill: none; vertical-align: middle }
.controls { display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; margin: .4rem 0 }
select, button { font: inherit; font-size: .9rem; color: inherit; background: var(--card); border: 1px solid
  var(--line);
  border-radius: .4rem; padding: .2rem .5rem; max-width: 100% }
button { cursor: pointer; text-align: left }
button[aria-pressed=false] { color: var(--soft); border-style: dashed }
button[aria-pressed=false] i { opacity: .3 }
button:focus-visible, select:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset:
  1px }
button i { display: inline-block; width: 1.4rem; border-top: 3px solid; margin-right: .4rem; vertical-align: middle }
.legend { max-height: 11rem; overflow-y: auto }
.tip { position: absolute; pointer-events: none; background: var(--paper); border: 1px solid var(--line);
  border-radius: .4rem;
  padding: .3rem .5rem; font-size: .85rem; max-width: 15rem; box-shadow: 0 2px 8px #0003 }
.tip b { display: block }
.tip i { display: inline-block; width: .7rem; border-top: 3px solid; margin-right: .3rem; vertical-align: middle }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
.axis { fill: var(--soft); font-size: 12px }
.mark { stroke: var(--soft); stroke-dasharray: 3 4 }
.rule { stroke: var(--grid) }
.pixels { width: 4rem; height: auto; image-rendering: pixelated }
pre { background: var(--card); padding: .6rem .8rem; border-radius: .5rem; overflow-x: auto }
@media print { main { max-width: none; padding: 0 }
.controls select, .tip { display: none }
.scroll, .legend { overflow: visible; max-height: none }
  section, figure, tr { break-inside: avoid }
button[aria-pressed=false] { display: none }
* { print-color-adjust: exact } }
"""

// Paints the sections of the page `/swarm` (see views.py). Text from the cluster only ever becomes a text node.
"use strict"

window.swarmPage = (() => {
  const SILENT_AFTER_MS = 5000 // the page hears from the scheduler every second
  const KNOCK_EVERY_MS = 3000
  const COMPACT_ABOVE = 24
  const DENSE_ABOVE = 150
  const ENDED_SHOWN = 12

  // The folder of the page; a prefix or a proxy may stand before it, a slash after it.
  const home = location.pathname.replace(/swarm\/?$/, "")

  const $ = (selector) => document.querySelector(selector)
  const inOrder = new Intl.Collator(undefined, { numeric: true }).compare

  // -- small parts ------------------------------------------------------------------------------------------------

  function el(tag, className, ...children) {
    const node = document.createElement(tag)
    if (className) node.className = className
    node.append(...children)
    return node
  }

  function icon(name) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
    svg.setAttribute("class", "icon")
    svg.setAttribute("aria-hidden", "true")
    svg.append(document.createElementNS(svg.namespaceURI, "use"))
    svg.firstChild.setAttribute("href", "#i-" + name)
    return svg
  }

  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text
  }

  const number = (value, digits = 0) =>
    value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })
  const orDash = (value, format) => (value === null || value === undefined ? "–" : format(value))
  const percent = (value) => number(value) + " %"
  const rate = (value) => number(value, value < 10 ? 1 : 0)
  const count = (n, one, many = one + "s") => `${number(n)} ${n === 1 ? one : many}`

  function bytes(value) {
    const power = value < 1 ? 0 : Math.min(4, Math.floor(Math.log2(value) / 10))
    const scaled = value / 1024 ** power
    return number(scaled, scaled < 10 && power ? 1 : 0) + " " + ["B", "KiB", "MiB", "GiB", "TiB"][power]
  }

  function seconds(value) {
    if (value < 10) return number(value, 1) + " s"
    if (value < 60) return number(value) + " s"
    if (value < 3600) return `${Math.floor(value / 60)} min ${number(Math.floor(value % 60))} s`
    return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`
  }

  const clock = (at_s) => new Date(at_s * 1000).toLocaleTimeString([], { hour12: false }) // as the chart has it

  function command(text) {
    return el("code", "command", text)
  }

  // -- sections ---------------------------------------------------------------------------------------------------

  let about = { cluster: "", version: "" }
  const startWorker = () => `dask worker ${about.cluster} --preload swarm.agents`

  function paintAbout(value) {
    about = value
    setText($("#cluster"), about.cluster)
    setText($("#version"), about.version)
  }

  function paintTotals(totals) {
    const entries = [
      ["workers", "Workers", number(totals.workers), ""],
      ["threads", "Threads", number(totals.threads), ""],
      ["rate", "Tasks/s", orDash(totals.tasks_per_s, rate), ""],
      ["tasks", "Running", orDash(totals.tasks_processing, number),
        totals.tasks_queued === null ? "" : `${number(totals.tasks_queued + totals.tasks_waiting)} to do`],
      ["memory", "Memory", totals.workers > totals.workers_without_agents ? bytes(totals.memory_bytes) : "–",
        totals.memory_limit_bytes ? "of " + bytes(totals.memory_limit_bytes) : ""],
      ["alert", "Alerts", number(totals.alerts), totals.alerts ? "" : "all quiet"],
    ]
    const list = $("#totals")
    if (!list.children.length) {
      for (const [name, label] of entries) {
        const cell = el("div", "", el("dt", "", label), el("dd", "", el("b"), el("small")))
        cell.dataset.total = name
        list.append(cell)
      }
      list.lastChild.querySelector("dt").prepend(icon("alert"))
    }
    entries.forEach(([, , value, note], i) => {
      setText(list.children[i].querySelector("b"), value)
      setText(list.children[i].querySelector("small"), note)
    })
    list.lastChild.classList.toggle("raised", totals.alerts > 0)
    const done = totals.tasks_finished === null ? "" : count(totals.tasks_finished, "task") + " finished"
    const erred = totals.tasks_erred ? `, ${number(totals.tasks_erred)} erred` : ""
    setText($("#rate small"), done + erred)
  }

  const tiles = new Map()

  function paintWorkers(rows) {
    rows.sort((a, b) => inOrder(a.name, b.name))
    const box = $("#tiles")
    box.className = rows.length > DENSE_ABOVE ? "dense" : rows.length > COMPACT_ABOVE ? "compact" : ""
    document.body.classList.toggle("no-workers", !rows.length)
    const gone = new Set(tiles.keys())
    rows.forEach((row, i) => {
      gone.delete(row.address)
      if (!tiles.has(row.address)) tiles.set(row.address, newTile())
      const tile = tiles.get(row.address)
      if (box.children[i] !== tile) box.insertBefore(tile, box.children[i] || null)
      paintTile(tile, row)
    })
    for (const address of gone) {
      tiles.get(address).remove()
      tiles.delete(address)
    }
    const by = (health) => rows.filter((row) => row.health === health).length
    const parts = ["healthy", "alert", "suspected", "stale", "no agent"].filter(by).map((h) => `${by(h)} ${h}`)
    setText($("#workers small"), parts.join(" · "))
    paintWorkersNote(rows, by("no agent"))
    if (shownTile) showDetails(shownTile)
  }

  function paintWorkersNote(rows, without) {
    const note = $("#workers-note")
    const what = JSON.stringify([rows.length > 0, without, about.cluster])
    if (note.dataset.what === what) return
    note.dataset.what = what
    if (!rows.length) {
      note.replaceChildren(
        el("div", "empty large", el("strong", "", "No workers yet"), el("span", "", "Start one on any machine that reaches the scheduler:"), command(startWorker()))
      )
    } else if (without) {
      const all = without === rows.length
      note.replaceChildren(
        el("div", "notice", icon("no-agent"), el("div", "",
          el("strong", "", all ? "No worker runs agents" : `${count(without, "worker")} without agents`),
          el("span", "", all
            ? "Dask works as ever, but there are no readings. Start workers with:"
            : "No readings from there. Start workers with:"),
          command(startWorker()))))
    } else {
      note.replaceChildren()
    }
  }

  function newTile() {
    const bar = (name) => el("div", "meter " + name, el("span", "label", name), el("span", "track", el("i")), el("span", "value"))
    const tile = el("div", "tile",
      el("div", "name", icon("healthy"), el("b")), el("div", "word"), bar("CPU"), bar("Memory"))
    tile.tabIndex = 0
    tile.setAttribute("role", "listitem")
    tile.setAttribute("aria-describedby", "details")
    return tile
  }

  function paintTile(tile, row) {
    const cpu = row.cpu_percent === null ? null : row.cpu_percent / Math.max(1, row.threads)
    tile.row = row
    tile.dataset.health = row.health
    tile.dataset.over = row.alerts.join(" ")
    tile.dataset.address = row.address
    tile.setAttribute("aria-label", `${row.name}: ${row.health}`)
    tile.querySelector("use").setAttribute("href", "#i-" + row.health.replace(" ", "-"))
    setText(tile.querySelector("b"), row.name)
    setText(tile.querySelector(".word"), row.health)
    paintMeter(tile.querySelector(".CPU"), cpu, orDash(cpu, percent))
    paintMeter(tile.querySelector(".Memory"), row.memory_percent,
      row.memory_percent !== null ? percent(row.memory_percent) : orDash(row.memory_bytes, bytes))
  }

  function paintMeter(meter, share, text) {
    const width = share === null ? "0" : Math.max(0, Math.min(100, share)).toFixed(0) + "%"
    const fill = meter.querySelector("i")
    if (fill.style.width !== width) fill.style.width = width
    meter.classList.toggle("absent", share === null)
    setText(meter.querySelector(".value"), text)
  }

  function paintAlerts(rows) {
    const active = rows.filter((row) => row.is_active).length
    setText($("#alerts small"), active ? `${active} active` : "")
    const shown = rows.slice(0, Math.max(active, Math.min(active + 5, ENDED_SHOWN)))
    const items = shown.map((row) => {
      const severity = row.is_active ? row.severity : "cleared"
      const when = row.is_active ? `raised ${seconds(row.lasted_s)} ago` : "cleared after " + seconds(row.lasted_s)
      const item = el("li", severity, icon(row.is_active ? "alert" : "healthy"), el("div", "",
        el("div", "headline", el("b", "", severity), el("span", "", `${row.resource} · ${row.worker_name}`)),
        el("p", "", row.sentence),
        el("span", "quiet", when)))
      item.dataset.alert = row.alert
      return item
    })
    fill("#alerts", items, "No alerts", "No worker is over a limit.")
  }

  const DEATHS_SHOWN = 5

  function paintDeaths(rows) {
    $("#deaths").hidden = !rows.length
    setText($("#deaths small"), rows.length ? number(rows.length) : "")
    const items = rows.slice(0, DEATHS_SHOWN).map((row) => {
      const item = el("li", "warning", icon("off"), el("div", "",
        el("div", "headline", el("b", "", row.name), el("span", "", clock(row.at_s))),
        el("p", "", row.cause),
        el("span", "quiet", row.running.length ? "ran " + row.running.slice(0, 3).join(", ") : "nothing ran there")))
      item.title = row.last_lines.join("\n")
      return item
    })
    fill("#deaths", items, "", "")
  }

  const AGENTS_SHOWN = 12

  // Those on each worker are called `name.<worker>`: that they all run takes one line.
  function paintAgents(rows) {
    $("#agents").hidden = !rows.length
    const running = rows.filter((row) => row.state === "running").length
    setText($("#agents small"), rows.length ? `${number(running)} of ${number(rows.length)} running` : "")
    const groups = new Map()
    for (const row of rows) {
      const end = "." + row.place
      const isOne = row.state !== "running" || !row.agent.endsWith(end)
      const name = isOne ? row.agent : row.agent.slice(0, -end.length)
      const key = `${isOne} ${name}`
      groups.set(key, [...(groups.get(key) ?? []), row])
    }
    const worst = ([row]) => (row.state === "failed" ? 0 : row.state === "running" ? 2 : 1)
    const found = [...groups.values()].sort((a, b) => worst(a) - worst(b) || inOrder(a[0].agent, b[0].agent))
    const items = found.slice(0, AGENTS_SHOWN).map((group) => {
      const [row] = group
      const isWell = row.state === "running"
      const isMany = group.length > 1
      const name = isMany ? row.agent.slice(0, -row.place.length - 1) : row.agent
      const restarts = group.reduce((sum, each) => sum + each.restarts, 0)
      const facts = [row.kind, isMany ? count(group.length, "place") : row.place === about.cluster ? "scheduler" : row.place, restarts && count(restarts, "restart")]
      const item = el("li", isWell ? "good" : row.state === "failed" ? "serious" : "warning",
        icon(isWell ? "healthy" : row.state === "failed" ? "off" : "alert"), el("div", "",
          el("div", "headline", el("b", "", name), el("span", "", row.state)),
          el("span", "quiet", facts.filter(Boolean).join(" · "))))
      if (row.reason) item.lastChild.append(el("p", "", row.reason))
      item.title = group.map((each) => each.agent).sort(inOrder).join("\n")
      return item
    })
    if (found.length > AGENTS_SHOWN) items.push(el("li", "more", `and ${number(found.length - AGENTS_SHOWN)} more`))
    fill("#agents", items, "", "")
  }

  const CHANGES_SHOWN = 8

  // What several agents do alike, one after the other, takes one line.
  function paintChanges(rows) {
    $("#changes").hidden = !rows.length
    const groups = []
    for (const row of rows) {
      const last = groups.at(-1)
      if (last && last[0].what === row.what && last[0].details === row.details) last.push(row)
      else groups.push([row])
    }
    const items = groups.slice(0, CHANGES_SHOWN).map((group) => {
      const [row] = group
      const by = [...new Set(group.map((each) => each.agent))].sort(inOrder)
      const who = by.length > 3 ? `${by.slice(0, 2).join(", ")} and ${by.length - 2} more` : by.join(", ")
      const item = el("li", "cleared",
        el("time", "mono", clock(row.at_s)), el("div", "",
          el("div", "headline", el("b", "", row.what), el("span", "", [row.details, group.length > by.length && `${group.length} times`].filter(Boolean).join(" · "))),
          el("span", "quiet", who)))
      item.title = by.join("\n")
      return item
    })
    fill("#changes", items, "", "")
  }

  function paintRuns(rows) {
    const live = rows.filter((row) => row.status === "running" || row.status === "pending").length
    setText($("#runs small"), live ? `${live} under way` : "")
    const items = rows.slice(0, live + ENDED_SHOWN).map((row) => {
      const share = (n) => (row.tasks ? (100 * n) / row.tasks : 0) + "%"
      const bar = el("div", "progress", el("i", "finished"), el("i", "erred"))
      bar.setAttribute("role", "progressbar")
      bar.setAttribute("aria-valuemax", row.tasks)
      bar.setAttribute("aria-valuenow", row.finished + row.erred)
      bar.children[0].style.width = row.status === "finished" ? "100%" : share(row.finished)
      bar.children[1].style.width = share(row.erred)
      const erred = row.erred ? ` · ${number(row.erred)} erred` : ""
      const item = el("li", row.status,
        el("div", "headline", el("b", "", row.name), el("span", "status", row.status)),
        bar,
        el("div", "quiet spread", el("span", "", `${number(row.finished)} of ${count(row.tasks, "task")}${erred}`), el("span", "", seconds(row.elapsed_s))))
      if (row.reason) item.append(el("p", "", row.reason))
      item.dataset.run = row.run
      return item
    })
    fill("#runs", items, "No runs yet", "A run appears here as soon as a client submits work.")
  }

  function fill(section, items, title, text) {
    const nothing = el("li", "empty", el("strong", "", title), el("span", "", text))
    $(section + " ul").replaceChildren(...(items.length ? items : [nothing]))
  }

  // -- banners: what is wrong with the page or with swarm itself ------------------------------------------------

  const banners = {}

  function banner(name, title, text) {
    if (banners[name]?.what === title + text) return
    banners[name]?.node.remove()
    delete banners[name]
    if (!title) return
    const node = el("div", "banner " + name.split(" ")[0], icon("off"), el("div", "", el("strong", "", title), el("span", "", text)))
    banners[name] = { node, what: title + text }
    $("#banners").append(node)
  }

  function paintDisabled(rows) {
    const now = new Set(rows.map((row) => "disabled " + row.part))
    for (const name of Object.keys(banners)) {
      if (name.startsWith("disabled ") && !now.has(name)) banner(name)
    }
    for (const row of rows) {
      const failures = row.failures > 1 ? ` (${row.failures} failures)` : ""
      banner("disabled " + row.part, `Switched off: ${row.part}`, `${row.reason.replace(/\.$/, "")}${failures}. Dask goes on without it.`)
    }
  }

  const paintFailure = (text) => banner("failure", text && "This page failed and shows old values", text)

  // -- details on hover and focus -------------------------------------------------------------------------------

  let shownTile = null

  function showDetails(tile) {
    const row = tile.row
    const cores = row.cpu_percent === null ? "no reading" : `${number(row.cpu_percent / 100, 1)} of ${count(row.threads, "thread")}`
    const limit = row.memory_limit_bytes ? " of " + bytes(row.memory_limit_bytes) : ", no limit"
    const facts = [
      ["Address", row.address],
      ["Host", row.host],
      ["CPU", cores],
      ["Memory", row.memory_bytes === null ? "no reading" : bytes(row.memory_bytes) + limit],
      ["Telemetry", row.telemetry_age_s === null ? "none" : seconds(row.telemetry_age_s) + " ago"],
    ]
    const list = el("dl")
    for (const [label, value] of facts) list.append(el("dt", "", label), el("dd", "", value))
    const box = $("#details")
    box.replaceChildren(el("div", "headline", icon(row.health.replace(" ", "-")), el("b", "", row.name), el("span", "", row.health)), list)
    if (row.note) box.append(el("p", "", row.note))
    box.dataset.health = row.health
    box.hidden = false
    const at = tile.getBoundingClientRect()
    const left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8))
    const below = at.bottom + 6 + box.offsetHeight < innerHeight
    box.style.left = left + "px"
    box.style.top = Math.max(8, below ? at.bottom + 6 : at.top - box.offsetHeight - 6) + "px"
    shownTile = tile
  }

  function hideDetails() {
    $("#details").hidden = true
    shownTile = null
  }

  for (const kind of ["pointerover", "focusin"]) {
    $("#tiles").addEventListener(kind, (event) => {
      const tile = event.target.closest(".tile")
      if (tile) showDetails(tile)
    })
  }
  $("#tiles").addEventListener("pointerleave", hideDetails)
  $("#tiles").addEventListener("focusout", hideDetails)
  addEventListener("scroll", hideDetails, { passive: true })
  addEventListener("keydown", (event) => event.key === "Escape" && hideDetails())

  // -- the connection: say so when the scheduler goes silent, come back when it answers -------------------------

  let heardAt = performance.now()
  let isClosed = false
  let knockedAt = 0

  function watch() {
    const silent = performance.now() - heardAt
    const isLost = isClosed || silent > SILENT_AFTER_MS
    const state = $("#connection")
    state.className = isLost ? "lost" : state.className === "waiting" ? "waiting" : "live"
    if (state.className !== "waiting") setText(state, isLost ? "Disconnected" : "Live")
    document.body.classList.toggle("lost", isLost)
    banner("lost", isLost && (isClosed ? "The page was switched off" : "Disconnected from the scheduler"),
      `What you see is ${seconds(silent / 1000)} old. The page loads anew as soon as it answers.`)
    if (isLost && performance.now() - knockedAt > KNOCK_EVERY_MS) {
      knockedAt = performance.now()
      void knock()
    }
  }

  async function knock() {
    try {
      const answer = await fetch(home + "swarm/state.json", { cache: "no-store", signal: AbortSignal.timeout(KNOCK_EVERY_MS) })
      if (answer.ok && (isClosed ? !(await answer.json()).is_closed : true)) location.reload()
    } catch {
      // Nobody is there yet; the banner says so.
    }
  }

  setInterval(watch, 1000)
  $("header a").href = home + "status"

  // -- start ------------------------------------------------------------------------------------------------------

  const painters = {
    about: paintAbout,
    totals: paintTotals,
    workers: paintWorkers,
    alerts: paintAlerts,
    deaths: paintDeaths,
    agents: paintAgents,
    changes: paintChanges,
    runs: paintRuns,
    disabled: paintDisabled,
    failure: paintFailure,
    is_closed: (value) => { isClosed = value },
  }

  return (board) => {
    const painted = {}
    const rates = board.document.get_model_by_name("chart").renderers[0].data_source
    const paint = () => {
      heardAt = performance.now()
      $("#connection").className = "live"
      $("#rate").classList.toggle("has-points", rates.get_length() > 1)
      for (const [name, painter] of Object.entries(painters)) {
        const text = board.data[name]?.[0]
        if (text === undefined || text === painted[name]) continue
        painted[name] = text
        painter(JSON.parse(text))
      }
      watch()
    }
    board.properties.data.change.connect(paint)
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      for (const view of Object.values(Bokeh.index)) view.invalidate_render?.()
    })
    paint()
  }
})()

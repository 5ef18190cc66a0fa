// What pages need beside htmx: times in the viewer's zone, an instant picked on the band, commands to copy, and runs that
// are followed live. Without this file every page still works: times are in UTC, an instant is typed, a run is reloaded.
"use strict";
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const formats = {
    full: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" }),
    short: new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }),
    clock: new Intl.DateTimeFormat(undefined, { timeStyle: "medium" }),
  };
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });
  const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

  const distance = (instant) => {
    const seconds = Math.round((instant - Date.now()) / 1000);
    const [unit, size] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? UNITS.at(-1);
    return relative.format(Math.trunc(seconds / size), unit);
  };

  const localise = () => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const instant = new Date(time.dateTime);
      const as = time.dataset.show ?? "full";
      const text = formats[as] ? formats[as].format(instant) : time.textContent;
      if (time.textContent !== text) time.textContent = text;
      const told = as === "age" ? formats.full.format(instant) : distance(instant);
      time.title = `${told} · ${instant.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    }
  };

  // The field takes local time; what is sent is UTC. "latest" and full ISO instants pass as they are.
  const local = (instant) => new Date(instant - new Date(instant).getTimezoneOffset() * 60000).toISOString().slice(0, 19);

  const prepareInstant = (field) => {
    const visible = document.createElement("input");
    const given = Date.parse(field.value);
    visible.type = "datetime-local";
    visible.step = "1";
    visible.id = field.id;
    field.removeAttribute("id");
    field.type = "hidden";
    if (Number.isNaN(given)) field.value = "latest"; else visible.value = local(given);
    const mark = () => {
      const chosen = Date.parse(field.value);
      for (const band of document.querySelectorAll("svg.band")) {
        const [begin, end] = [Date.parse(band.dataset.begin), Date.parse(band.dataset.end)];
        const line = band.querySelector(".chosen");
        const inside = chosen >= begin && chosen <= end;
        line.setAttribute("visibility", inside ? "visible" : "hidden");
        if (inside) for (const x of ["x1", "x2"]) line.setAttribute(x, `${(chosen - begin) / (end - begin) * 100}%`);
      }
    };
    const choose = (iso) => {
      field.value = iso;
      visible.value = iso === "latest" ? "" : local(Date.parse(iso));
      mark();
      field.form.dispatchEvent(new Event("change", { bubbles: true }));
    };
    visible.addEventListener("change", () => {
      field.value = visible.value ? new Date(visible.value).toISOString() : "latest";
      mark();
    });
    field.before(visible);
    const label = field.form.querySelector("[data-zone-label]");
    if (label) label.textContent = `(${zone}; empty = latest)`;
    document.querySelectorAll("svg.band").forEach((band) => prepareBand(band, choose));
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-use]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      choose(link.dataset.use);
      visible.focus();
      field.form.scrollIntoView({ block: "nearest" });
    });
    mark();
  };

  // A click picks the instant under it; the field below is the way without a pointer, and the finer one.
  const prepareBand = (band, choose) => {
    const [begin, end] = [Date.parse(band.dataset.begin), Date.parse(band.dataset.end)];
    const hint = document.createElement("span");
    const idle = "Click the band to choose an instant.";
    const under = (event) => {
      const box = band.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const second = Math.round((begin + share * (end - begin)) / 1000);
      return new Date(Math.min(Math.max(second, Math.ceil(begin / 1000)), Math.floor(end / 1000)) * 1000);
    };
    hint.className = "hint";
    hint.textContent = idle;
    band.parentElement.querySelector(".legend").append(hint);
    band.classList.add("picks");
    band.addEventListener("pointermove", (event) => { hint.textContent = formats.full.format(under(event)); });
    band.addEventListener("pointerleave", () => { hint.textContent = idle; });
    band.addEventListener("click", (event) => choose(under(event).toISOString()));
  };

  const prepareCommand = (code) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    code.dataset.copy = "ready";
    code.after(button);
  };

  // Events only say that something changed; what is shown is rendered by the server.
  const follow = (live) => {
    let waiting = null;
    const renew = async () => {
      waiting = null;
      try {
        const answer = await fetch(live.dataset.fragment, { headers: { "HX-Request": "true" } });
        if (answer.status === 401) location.reload();
        else if (answer.ok) htmx.swap({ target: live, text: await answer.text(), swap: "innerMorph" });
        else soon(3000);
      } catch {
        soon(3000); // no connection
      }
    };
    const soon = (milliseconds) => { if (waiting === null) waiting = setTimeout(renew, milliseconds); };
    const events = new EventSource(live.dataset.events);
    for (const kind of ["state", "step", "note", "progress"]) events.addEventListener(kind, () => soon(300));
    events.addEventListener("end", () => {
      events.close();
      soon(300);
      for (const form of document.querySelectorAll("[data-until-over]")) form.hidden = true;
    });
  };

  const dress = () => {
    localise();
    if (navigator.clipboard) document.querySelectorAll("code[data-copy='']").forEach(prepareCommand);
  };

  dress();
  new MutationObserver(dress).observe(document.body, { childList: true, characterData: true, subtree: true });
  const place = document.getElementById("zone");
  if (place) place.textContent = `your zone (${zone})`;
  document.querySelectorAll("input[data-instant]").forEach(prepareInstant);
  document.querySelectorAll("[data-events]").forEach(follow);
  // A form is sent once; the key in it makes a second one harmless, this makes it unlikely.
  document.addEventListener("submit", (event) => {
    if (event.target.method === "post") {
      for (const button of event.target.querySelectorAll("button")) setTimeout(() => { button.disabled = true; });
    }
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) document.querySelectorAll("button:disabled").forEach((button) => { button.disabled = false; });
  });
})();

"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const drop = by("drop"), send = by("send"), work = by("work"), bar = by("bar"), stage = by("stage");
  let channels = [], chosen = {}, request = null, result = null, seen = null;

  const bearing = () => (by("token").value ? { Authorization: `Bearer ${by("token").value}` } : {});
  const four = (value) => Number(value).toPrecision(4).replace(/\.?0+(e|$)/, "$1");

  function say(list, texts, kind) {
    by(list).replaceChildren(...texts.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      if (kind) item.className = kind;
      return item;
    }));
  }

  async function ask(path) {
    const answer = await fetch(path, { headers: bearing() });
    if (answer.ok) return answer;
    let sentence = `the server answers ${answer.status}`;
    try { sentence = (await answer.json()).error; } catch { /* not ours */ }
    const error = new Error(sentence);
    error.status = answer.status;
    throw error;
  }

  async function meet() {
    try {
      const model = await (await ask("/v1/model")).json();
      channels = model.channels;
      const version = model.version ? `, version ${model.version}` : "";
      by("model").textContent = `${model.name}${version}: ${model.card.method}, learnt from ${model.card.cohort.num_subjects} healthy subjects.`;
      say("errors", []);
      offer();
    } catch (error) {
      by("model").textContent = error.status === 401 ? "This server asks for a token." : "The server's model cannot be asked for.";
      if (error.status === 401) by("token-form").hidden = false;
      else say("errors", [error.message], "alarm");
    }
  }

  function offer() {
    chosen = {};
    by("files").replaceChildren(...channels.map((channel) => {
      const label = document.createElement("label"), name = document.createElement("span"), input = document.createElement("input");
      label.className = "file";
      name.textContent = channel;
      input.type = "file";
      input.dataset.channel = channel;
      input.addEventListener("change", () => choose(channel, input.files[0]));
      label.append(name, input);
      return label;
    }));
    ready();
  }

  function choose(channel, file) {
    if (file) chosen[channel] = file; else delete chosen[channel];
    ready();
  }

  function ready() {
    send.disabled = !channels.length || !channels.every((channel) => chosen[channel]) || request !== null;
  }

  function take(files) {
    say("errors", []);
    if (!channels.length) return;
    const free = channels.filter((channel) => !chosen[channel]);
    const places = channels.length === 1 ? channels : free;
    [...files].slice(0, places.length).forEach((file, place) => {
      const input = document.querySelector(`input[data-channel="${CSS.escape(places[place])}"]`);
      const moved = new DataTransfer();
      moved.items.add(file);
      input.files = moved.files;
      choose(places[place], file);
    });
    if (channels.length === 1 && !send.disabled) score();
  }

  function score() {
    const form = new FormData();
    for (const channel of channels) form.append(channel, chosen[channel], "volume");
    if (by("mask").files[0]) form.append("brain_mask", by("mask").files[0], "mask");
    const name = chosen[channels[0]].name;
    const begun = performance.now();
    say("errors", []);
    by("result").hidden = true;
    work.hidden = false;
    bar.value = 0;
    stage.textContent = "Uploading";
    request = new XMLHttpRequest();
    ready();
    const clock = setInterval(() => {
      if (bar.value === 1) stage.textContent = `Preparing and scoring, ${Math.round((performance.now() - begun) / 1000)} s`;
    }, 500);
    request.upload.addEventListener("progress", (event) => {
      if (!event.lengthComputable) return;
      bar.value = event.loaded / event.total;
      stage.textContent = `Uploading, ${Math.round(100 * bar.value)} %`;
    });
    request.upload.addEventListener("load", () => { bar.value = 1; bar.removeAttribute("value"); stage.textContent = "Preparing and scoring"; });
    request.addEventListener("loadend", () => {
      clearInterval(clock);
      const done = request;
      request = null;
      work.hidden = true;
      ready();
      let answer = {};
      try { answer = JSON.parse(done.responseText); } catch { /* no answer, or not ours */ }
      if (done.status === 200) show(answer, name);
      else if (done.status === 0) say("errors", [done.stopped ? "Stopped." : "The connection was lost before an answer came: try again."], done.stopped ? "" : "alarm");
      else say("errors", [answer.error || `the server answers ${done.status}`], "alarm");
    });
    request.open("POST", "/v1/score");
    for (const [key, value] of Object.entries(bearing())) request.setRequestHeader(key, value);
    request.send(form);
  }

  async function show(answer, name) {
    result = answer;
    by("name").textContent = name;
    const facts = [["Image score", four(answer.image_score)], ["Highest", four(answer.highest)]];
    if (answer.threshold !== null) facts.push(["Above threshold", `${four(answer.anomalous_ml)} ml`], ["Threshold", four(answer.threshold)]);
    facts.push(["Method", answer.method], ["Version", answer.model.version || answer.model.digest.slice(0, 12)], ["Scored in", `${answer.seconds} s`]);
    by("facts").replaceChildren(...facts.map(([key, value]) => {
      const pair = document.createElement("div"), term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = key;
      said.textContent = value;
      pair.append(term, said);
      return pair;
    }));
    say("warnings", answer.warnings);
    try {
      seen = read(await (await ask(answer.result.view)).arrayBuffer());
    } catch (error) {
      say("errors", [error.message], "alarm");
      return;
    }
    by("result").hidden = false;
    [0, 1, 2].forEach((axis) => { by(`slice-${axis}`).max = seen.shape[axis] - 1; });
    by("low").value = 0;
    by("high").value = Math.round(1000 * seen.bright);
    const top = seen.map.high;
    const from = seen.threshold !== null && seen.threshold < top ? seen.threshold : 0.5 * top;
    by("from").value = Math.max(1, Math.round(255 * from / top));
    toHighest();
    by("result").scrollIntoView({ block: "start" });
  }

  // A little-endian length, a JSON header, the image as uint16 and the map as uint8.
  function read(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const count = header.shape[0] * header.shape[1] * header.shape[2];
    const values = new Uint16Array(buffer, 4 + length, count);
    const scores = new Uint8Array(buffer, 4 + length + 2 * count, count);
    // White where all but a two-hundredth of what is not the background is darker.
    const counts = new Uint32Array(1001);
    let total = 0;
    for (const value of values) if (value > 655) { counts[Math.round(value / 65.535)] += 1; total += 1; }
    let bright = 1000;
    for (let rest = 0; bright > 1 && rest + counts[bright] <= total / 200; bright -= 1) rest += counts[bright];
    return { ...header, values, scores, bright: Math.min(1, (bright + 1) / 1000) };
  }

  // Rows and columns of each plane, with the last axis up and the patient's left on the left.
  const PLANES = [[1, 2], [0, 2], [0, 1]];

  function plane(axis) {
    const { shape, spacing_mm: spacing, values, scores } = seen;
    const [across, up] = PLANES[axis];
    const width = shape[across], height = shape[up];
    const steps = [shape[1] * shape[2], shape[2], 1];
    const start = Number(by(`slice-${axis}`).value) * steps[axis];
    const low = 65.535 * by("low").value, high = Math.max(low + 1, 65.535 * by("high").value);
    const from = Number(by("from").value), opacity = by("opacity").value / 100;
    const picture = new ImageData(width, height);
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const place = start + column * steps[across] + (height - 1 - row) * steps[up];
        const grey = Math.min(255, Math.max(0, 255 * (values[place] - low) / (high - low)));
        let red = grey, green = grey, blue = grey;
        if (scores[place] >= from && from > 0) {
          const heat = (scores[place] - from) / Math.max(1, 255 - from);
          red += opacity * (230 + 25 * heat - red);
          green += opacity * (90 + 165 * heat - green);
          blue += opacity * (20 + 190 * heat * heat - blue);
        }
        picture.data.set([red, green, blue, 255], 4 * (row * width + column));
      }
    }
    const small = new OffscreenCanvas(width, height);
    small.getContext("2d").putImageData(picture, 0, 0);
    const canvas = by(`plane-${axis}`), context = canvas.getContext("2d");
    const scale = Math.min(...PLANES.map(([a, u]) => canvas.width / Math.max(shape[a] * spacing[a], shape[u] * spacing[u])));
    const wide = width * spacing[across] * scale, tall = height * spacing[up] * scale;
    const left = (canvas.width - wide) / 2, top = (canvas.height - tall) / 2;
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(small, left, top, wide, tall);
    context.strokeStyle = "rgb(120 190 235 / 0.55)";
    context.lineWidth = 1;
    context.beginPath();
    const x = left + (Number(by(`slice-${across}`).value) + 0.5) / width * wide;
    const y = top + (height - 0.5 - Number(by(`slice-${up}`).value)) / height * tall;
    context.moveTo(x, 0); context.lineTo(x, canvas.height);
    context.moveTo(0, y); context.lineTo(canvas.width, y);
    context.stroke();
    by(`at-${axis}`).textContent = `${Number(by(`slice-${axis}`).value) + 1} / ${shape[axis]}`;
    canvas.geometry = { left, top, wide, tall, across, up, width, height };
  }

  function draw() {
    if (!seen) return;
    [0, 1, 2].forEach((axis) => {
      const canvas = by(`plane-${axis}`), size = Math.max(64, Math.round(canvas.clientWidth * devicePixelRatio));
      if (canvas.width !== size) canvas.width = canvas.height = size;
      plane(axis);
    });
    by("from-value").textContent = four(seen.map.high * by("from").value / 255);
  }

  function toHighest() {
    let best = 0;
    seen.scores.forEach((value, place) => { if (value > seen.scores[best]) best = place; });
    const [, h, w] = seen.shape;
    by("slice-0").value = Math.floor(best / (h * w));
    by("slice-1").value = Math.floor(best / w) % h;
    by("slice-2").value = best % w;
    draw();
  }

  function point(event) {
    const canvas = event.target, box = canvas.getBoundingClientRect(), g = canvas.geometry;
    if (!g || (event.type === "pointermove" && !event.buttons)) return;
    const x = (event.clientX - box.left) / box.width * canvas.width, y = (event.clientY - box.top) / box.height * canvas.height;
    by(`slice-${g.across}`).value = Math.floor((x - g.left) / g.wide * g.width);
    by(`slice-${g.up}`).value = g.height - 1 - Math.floor((y - g.top) / g.tall * g.height);
    draw();
  }

  async function download() {
    try {
      const url = URL.createObjectURL(await (await ask(result.result.map)).blob());
      const link = document.createElement("a");
      link.href = url;
      link.download = `${by("name").textContent.replace(/\.(nii\.gz|nii|zip)$/i, "")}_map.nii.gz`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    } catch (error) {
      say("errors", [error.message], "alarm");
    }
  }

  for (const kind of ["dragenter", "dragover"]) addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => { event.preventDefault(); drop.classList.remove("over"); if (request === null) take(event.dataTransfer.files); });
  for (const id of ["slice-0", "slice-1", "slice-2", "low", "high", "from", "opacity"]) by(id).addEventListener("input", draw);
  for (const axis of [0, 1, 2]) for (const kind of ["pointerdown", "pointermove"]) by(`plane-${axis}`).addEventListener(kind, point);
  by("token-form").addEventListener("submit", (event) => { event.preventDefault(); meet(); });
  by("cancel").addEventListener("click", () => { if (request) { request.stopped = true; request.abort(); } });
  send.addEventListener("click", score);
  by("highest").addEventListener("click", toHighest);
  by("download").addEventListener("click", download);
  addEventListener("resize", draw);
  meet();
})();

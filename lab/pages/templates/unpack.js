// The page's data: gzipped JSON, in base64. Tells in the page what is wrong where it cannot be unpacked.
async function unpack() {
  const note = document.getElementById("note"), packed = document.getElementById("data").textContent.trim();
  if (!("DecompressionStream" in window)) {
    note.textContent = "This browser cannot unpack the page's data (it has no DecompressionStream); a browser from 2023 or later can.";
    return null;
  }
  const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());
  note.remove();
  return data;
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// An option for each of the values; keeps what was chosen if it is still there, else takes the first.
function fill(select, values, chosen = select.value) {
  select.replaceChildren(...values.map(([value, text]) => element("option", { value, textContent: text })));
  select.selectedIndex = Math.max(0, values.findIndex(([value]) => String(value) === String(chosen)));
}

  const store = document.getElementById("slider-data");
  if (store) {
    const pictures = JSON.parse(store.textContent);
    const [picture, left, right, under, over, box] = ["picture", "left", "right", "under", "over"]
      .map((name) => document.getElementById("slider-" + name)).concat(document.getElementById("slider"));
    const fill = (select, names, wanted) => {
      const kept = names.includes(select.value) ? select.value : wanted;
      select.replaceChildren(...names.map((name) => new Option(name, name, false, name === kept)));
    };
    const show = () => {
      const versions = pictures[picture.value];
      const names = Object.keys(versions);
      fill(left, names, names.length > 3 ? names[1] : names[0]);
      fill(right, names, names.length > 3 ? names[2] : names[1]);
      over.src = versions[left.value];
      under.src = versions[right.value];
    };
    fill(picture, Object.keys(pictures), Object.keys(pictures)[0]);
    [picture, left, right].forEach((select) => select.addEventListener("change", show));
    box.querySelector("input").addEventListener("input", (event) => {
      const at = event.target.value / 10;
      over.style.clipPath = "inset(0 " + (100 - at) + "% 0 0)";
      box.style.setProperty("--at", at + "%");
    });
    show();
  }

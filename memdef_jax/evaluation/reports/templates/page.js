"use strict";
(() => {
  // A number where the cell has one, its text otherwise, null where it shows nothing.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const exact = cell.querySelector("[data-value]");
    if (exact) return Number(exact.dataset.value);
    const text = cell.textContent.trim();
    return text === "" || text === "-" ? null : text;
  };

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

  const sortBy = (table, headers, column) => {
    const down = headers[column].getAttribute("aria-sort") === "ascending";
    const keyed = [...table.tBodies[0].rows].map((row) => ({ row, key: keyOf(row, column) }));
    // Cells without a value stay at the end, whatever the direction.
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return down ? compare(b.key, a.key) : compare(a.key, b.key);
    });
    table.tBodies[0].append(...keyed.map(({ row }) => row));
    headers.forEach((header, index) => {
      const order = index === column ? (down ? "descending" : "ascending") : "none";
      header.setAttribute("aria-sort", order);
    });
  };

  document.querySelectorAll("table.sortable").forEach((table) => {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => sortBy(table, headers, column));
    });
  });

  document.querySelectorAll(".tools").forEach((tools) => {
    const input = tools.querySelector("input");
    const rows = [...document.getElementById(input.getAttribute("aria-controls")).tBodies[0].rows];
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
      const shown = rows.filter((row) => !row.hidden).length;
      tools.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
    };
    input.addEventListener("input", filter);
    tools.hidden = false;
    filter();
  });
})();

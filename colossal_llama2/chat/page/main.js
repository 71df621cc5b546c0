// Start the page.

import { App } from "./app.js";
import { openStore } from "./conversation_store.js";

const confirm = document.getElementById("confirm");
for (const button of confirm.querySelectorAll("button")) button.addEventListener("click", () => confirm.close(button.value));

await new App(await openStore()).start();
document.documentElement.dataset.ready = "";

// SPDX-License-Identifier: Apache-2.0
// Talking to the server: JSON there and back; an answer that is an error becomes one, with the server's own words.

async function answer(response) {
  let told;
  try {
    told = await response.json();
  } catch {
    throw new Error(`the server answered ${response.status}; is it still running?`);
  }
  if (!response.ok) throw new Error(told.error ?? `the server answered ${response.status}`);
  return told;
}

async function call(path, settings) {
  let response;
  try {
    response = await fetch(path, settings);
  } catch {
    throw new Error("the server does not answer; is jaxvid studio still running?");
  }
  return answer(response);
}

export const get = (path) => call(path);

export const post = (path, body) =>
  call(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

// Drives MQTT.js by lines of JSON on standard input, and tells what happens as lines of JSON on standard output.
"use strict";
const mqtt = require(process.argv[2]);
const say = (event, more) => process.stdout.write(JSON.stringify({ event, ...more }) + "\n");
let client;

const does = {
  connect({ url, options, will }) {
    if (will) options.will = { ...will, payload: Buffer.from(will.payload) };
    for (const name of ["ca", "cert", "key"]) {
      if (options[name]) options[name] = require("node:fs").readFileSync(options[name]);
    }
    client = mqtt.connect(url, options);
    client.on("connect", (packet) => say("connect", { packet: { properties: packet.properties } }));
    client.on("error", (error) => say("error", { code: error.code, message: error.message }));
    client.on("disconnect", (packet) => say("disconnect", { code: packet.reasonCode }));
    client.on("close", () => say("close"));
    client.on("message", (topic, payload) => say("message", { topic, payload: payload.toString("base64") }));
  },
  publish({ id, topic, payload, options }) {
    client.publish(topic, Buffer.from(payload, "base64"), options, (error, packet) =>
      say("published", { id, error: error && error.message, code: packet && packet.reasonCode }),
    );
  },
  subscribe({ id, filter, qos }) {
    client.subscribe(filter, { qos }, (error, granted) =>
      say("subscribed", { id, error: error && error.message, granted: granted && granted.map((one) => one.qos) }),
    );
  },
  end() {
    client.end(false, {}, () => process.exit(0));
  },
};

require("node:readline")
  .createInterface({ input: process.stdin })
  .on("line", (line) => {
    const { op, ...rest } = JSON.parse(line);
    does[op](rest);
  })
  .on("close", () => process.exit(0));

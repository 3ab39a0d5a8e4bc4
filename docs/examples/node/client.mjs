// Publishes one event: node client.mjs PROTOS 127.0.0.1:50051 tenants/acme order-17-paid
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [protos, target, tenant, id] = process.argv.slice(2);
const loaded = protoLoader.loadSync("webhooks/v1/publisher.proto", { includeDirs: [protos] });
const { PublisherService } = grpc.loadPackageDefinition(loaded).webhooks.v1;
const config = readFileSync(new URL("../service_config.json", import.meta.url), "utf8"); // balances, retries
const publisher = new PublisherService(target, grpc.credentials.createInsecure(), { "grpc.service_config": config });
const call = promisify(publisher.publish.bind(publisher));
const again = [grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED];

async function publish(request, tries = 20) {
  for (let left = tries - 1; ; left--) {
    try {
      return await call(request, { deadline: Date.now() + 10_000 });
    } catch (error) {
      if (!again.includes(error.code) || left === 0) throw error;
      console.error(grpc.status[error.code], "- the same request again");
      await sleep(100 + Math.random() * 900);
    }
  }
}

const event = { id, type: "order.paid", data: Buffer.from('{"order": 17}') };
const { results } = await publish({ parent: tenant, events: [event] });
console.log(JSON.stringify(results[0]));
publisher.close();

// Receives webhooks: WEBHOOK_SECRET=whsec_… node receiver.mjs 9000
import { createServer } from "node:http";
import { buffer } from "node:stream/consumers";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
let handled = 0; // the highest webhook-sequence; yours belongs in a database

createServer(async (request, response) => {
  const body = (await buffer(request)).toString();
  try {
    webhook.verify(body, request.headers, { jsonParse: false });
  } catch {
    response.writeHead(401).end();
    return;
  }
  const sequence = Number(request.headers["webhook-sequence"] ?? 0);
  if (sequence > handled) { // otherwise a copy, or a ping: those have no sequence
    console.log(sequence, request.headers["webhook-id"], request.headers["webhook-event-type"], body);
    handled = sequence;
  }
  response.writeHead(204).end();
}).listen(Number(process.argv[2]), "127.0.0.1");

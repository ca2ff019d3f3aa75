// As client.py, in JavaScript. Arguments: folder of the modules, bootstrap, targets.
const [modules, bootstrap, targets] = process.argv.slice(1);
process.env.GRPC_XDS_BOOTSTRAP = bootstrap;
const grpc = require(modules + '/@grpc/grpc-js');
const xds = require(modules + '/@grpc/grpc-js-xds');
xds.register();

function varint(data, at) {
  let value = 0, scale = 1;
  for (;;) {
    const byte = data[at++];
    value += (byte & 127) * scale;
    scale *= 128;
    if (byte < 128) return [value, at];
  }
}

function* fields(data) {
  let at = 0;
  while (at < data.length) {
    let key, value;
    [key, at] = varint(data, at);
    [value, at] = varint(data, at);
    if ((key & 7) === 2) {
      const text = data.subarray(at, at + value).toString();
      at += value;
      value = text;
    }
    yield [key >> 3, value];
  }
}

const count = (counts, key) => { counts[key] = (counts[key] ?? 0) + 1; };
const same = (bytes) => bytes;
const credentials = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
const clients = targets.split(',').map((target) => new grpc.Client('xds:///' + target, credentials));

function call(client, ask) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(ask.metadata)) metadata.set(name, value);
  const deadline = new Date(Date.now() + 20000);
  return new Promise((done) => client.makeUnaryRequest(
    ask.method, same, same, Buffer.alloc(0), metadata, { deadline },
    (error, reply) => done([error, reply])));
}

async function answer(line) {
  const ask = JSON.parse(line);
  const out = { pods: {}, versions: {}, peers: {}, errors: {}, details: '' };
  for (let i = 0; i < ask.calls * clients.length; i++) {
    const [error, reply] = await call(clients[i % clients.length], ask);
    if (error) {
      count(out.errors, grpc.status[error.code]);
      out.details = error.details;
      continue;
    }
    for (const [number, text] of fields(reply)) {
      if (number === 4) count(out.versions, text);
      else if (number === 5) count(out.pods, text);
      else if (number === 8 && text.startsWith('x-forwarded-client-cert: ')) {
        count(out.peers, text.split(': ').slice(1).join(': '));
      }
    }
  }
  process.stdout.write(JSON.stringify(out) + '\n');
}

let turn = Promise.resolve();
require('readline').createInterface({ input: process.stdin })
  .on('line', (line) => { turn = turn.then(() => answer(line)); })
  .on('close', () => turn.then(() => process.exit(0)));

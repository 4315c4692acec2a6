/** The close-code table: what each code is called, and whether to connect again (the server has the same table). */

/** @typedef {"yes" | "no" | "token" | "after"} Reconnect `token`: with a new token; `after`: when the server said */

/** @type {Readonly<Record<number, {code: number, name: string, reconnect: Reconnect}>>} */
export const CLOSE_CODES = {
  "1001": {"code": 1001, "name": "going_away", "reconnect": "after"},
  "1002": {"code": 1002, "name": "broken_frames", "reconnect": "no"},
  "1007": {"code": 1007, "name": "invalid_utf8", "reconnect": "no"},
  "1009": {"code": 1009, "name": "too_large", "reconnect": "no"},
  "1012": {"code": 1012, "name": "draining", "reconnect": "after"},
  "1013": {"code": 1013, "name": "unavailable", "reconnect": "yes"},
  "4400": {"code": 4400, "name": "bad_frame", "reconnect": "no"},
  "4401": {"code": 4401, "name": "unauthenticated", "reconnect": "token"},
  "4403": {"code": 4403, "name": "forbidden", "reconnect": "no"},
  "4404": {"code": 4404, "name": "no_auth", "reconnect": "yes"},
  "4408": {"code": 4408, "name": "no_heartbeat", "reconnect": "yes"},
  "4429": {"code": 4429, "name": "rate_limited", "reconnect": "after"},
  "4440": {"code": 4440, "name": "slow_consumer", "reconnect": "yes"},
  "4441": {"code": 4441, "name": "out_of_step", "reconnect": "yes"},
  "4450": {"code": 4450, "name": "revoked", "reconnect": "no"}
};

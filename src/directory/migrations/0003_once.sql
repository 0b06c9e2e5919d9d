-- How many requests of a token are known is looked at for each new one.

CREATE INDEX idempotency_by_token ON idempotency (token, at);

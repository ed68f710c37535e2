#!/usr/bin/env bash
# Health check of the server: authenticate as the services do, then PING; 0 only for PONG, so that
# a server that is still loading its data isn't healthy yet. Bash alone: the password is never an
# argument of a program, where `ps` would show it.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/${TOLARIA_REDIS_PORT:-6379}"
printf 'AUTH tolaria %s\r\nPING\r\n' "$TOLARIA_REDIS_PASSWORD" >&3
IFS= read -r -t 3 authenticated <&3
IFS= read -r -t 3 answer <&3
echo "auth: ${authenticated%$'\r'}, ping: ${answer%$'\r'}"
[[ $authenticated == +OK* && $answer == +PONG* ]]

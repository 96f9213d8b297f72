#!/usr/bin/env bash
# Six Redis servers on this machine, for trying tlog out. For real use, put each on a machine and disk of its own.
#
#   servers.sh start [FIRST-PORT]   six servers on 6379 to 6384 (or from FIRST-PORT on), data in ./redis-data
#   servers.sh stop  [FIRST-PORT]   stops them; their data stays
#
# Each answers a write only once it is on disk (appendfsync always) and never drops anything (noeviction): what tlog
# acknowledges on such servers survives their restart.
set -eu

first=${2:-6379}
data=${REDIS_DATA:-redis-data}

case "${1:-}" in
start)
    command -v redis-server >/dev/null || { echo "redis-server is not installed (Debian: apt-get install redis-server)" >&2; exit 1; }
    for port in $(seq "$first" $((first + 5))); do
        mkdir -p "$data/$port"
        redis-server --port "$port" --bind 127.0.0.1 --dir "$(cd "$data/$port" && pwd)" \
            --appendonly yes --appendfsync always --save '' --maxmemory-policy noeviction \
            --daemonize yes --pidfile redis.pid --logfile redis.log >/dev/null
    done
    for port in $(seq "$first" $((first + 5))); do
        # Ours is the one whose process has our pid file; it is written once the port is bound.
        for _ in $(seq 100); do
            [ -s "$data/$port/redis.pid" ] && redis-cli -p "$port" ping 2>/dev/null | grep -q PONG && continue 2
            grep -q "Address already in use" "$data/$port/redis.log" 2>/dev/null && break
            sleep 0.1
        done
        echo "port $port is taken, or its server does not answer (see $data/$port/redis.log); stop what runs there, or say" \
            "another first port: $0 start 16379" >&2
        "$0" stop "$first"
        exit 1
    done
    echo "six Redis servers on ports $first to $((first + 5)), data in $data"
    ;;
stop)
    for port in $(seq "$first" $((first + 5))); do
        # Only what this script started.
        if [ -s "$data/$port/redis.pid" ]; then
            kill "$(cat "$data/$port/redis.pid")" 2>/dev/null || true
        fi
    done
    echo "stopped; the data is still in $data"
    ;;
*)
    sed -n '2,6p' "$0" | cut -c3-
    exit 64
    ;;
esac

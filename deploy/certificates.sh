#!/bin/sh
# Makes an authority and the certificates that it signs, with openssl, for deploy/mosquitto.conf.
#
#   deploy/certificates.sh DIR broker.plant.lan [192.168.1.5 ...]    authority, and the broker's certificate for these names
#   deploy/certificates.sh DIR --client edge-01                      a client's certificate; the login is its common name
#
# DIR/ca.pem goes to every client, DIR/server.pem and server.key to the broker, DIR/NAME.pem and NAME.key to that
# client. DIR/ca.key signs: keep it off the broker. DAYS (825) is how long a certificate holds.
set -eu

fail() { echo "certificates: $*" >&2; exit 2; }
[ $# -ge 2 ] || fail "usage: $0 DIR NAME [NAME ...], or $0 DIR --client LOGIN"
dir=$1
shift
umask 077
mkdir -p "$dir"

# sign FILE COMMON-NAME EXTENSIONS
sign() {
    [ ! -e "$dir/$1.key" ] || fail "$dir/$1.key is there already; move it away to make another"
    printf '%s\n' "$3" >"$dir/$1.ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$dir/$1.key" -out "$dir/$1.csr" \
        -subj "/CN=$2" 2>/dev/null
    openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -CAcreateserial -days "${DAYS:-825}" \
        -extfile "$dir/$1.ext" -out "$dir/$1.pem" 2>/dev/null
    rm "$dir/$1.csr" "$dir/$1.ext"
    echo "$dir/$1.pem for $2"
}

if [ "$1" = --client ]; then
    [ $# = 2 ] || fail "--client takes one login"
    [ -e "$dir/ca.key" ] || fail "$dir/ca.key is missing: make the authority first, $0 $dir NAME-OF-THE-BROKER"
    case $2 in *[!A-Za-z0-9_-]*) fail "login $2: expected letters, digits, _ and -" ;; esac
    sign "$2" "$2" "extendedKeyUsage=clientAuth"
    exit 0
fi

if [ ! -e "$dir/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$dir/ca.key" -out "$dir/ca.pem" \
        -days 3650 -subj "/CN=edge-agent authority" -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
    echo "$dir/ca.pem, the authority"
fi
names=
for name; do
    case $name in
    *[!0-9.]*) kind=DNS ;;
    *) kind=IP ;;
    esac
    names=${names:+$names,}$kind:$name
done
sign server "$1" "subjectAltName=$names
extendedKeyUsage=serverAuth"

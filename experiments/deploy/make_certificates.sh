#!/bin/sh
# Make a certificate authority and the SuperLink's certificate.
#   make_certificates.sh FOLDER NAME...      names and addresses by which nodes reach the SuperLink
# ca.crt goes to every machine; ca.key stays off line; server.key stays on the SuperLink's machine.
set -eu
folder=${1:?usage: make_certificates.sh FOLDER NAME...}
shift
[ $# -gt 0 ] || { echo "name at least one host name or address" >&2; exit 2; }
umask 077
mkdir -p "$folder"
names=""
for name in "$@"; do
    case $name in
        *[!0-9A-Za-z.:*-]* | "") echo "$name is no host name or address" >&2; exit 2 ;;
        *:*) kind=IP ;;
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    names="${names:+$names,}$kind:$name"
done
cd "$folder"
if [ ! -f ca.key ]; then
    openssl req -x509 -newkey rsa:3072 -nodes -days 825 -keyout ca.key -out ca.crt \
        -subj "/CN=fedrobust CA" 2>/dev/null
fi
openssl req -newkey rsa:3072 -nodes -keyout server.key -out server.csr -subj "/CN=$1" 2>/dev/null
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names" > server.ext
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
    -out server.crt -extfile server.ext 2>/dev/null
rm -f server.csr server.ext
echo "wrote ca.crt, ca.key, server.crt and server.key for $names"

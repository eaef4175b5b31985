#!/bin/sh
# Make one node's key pair, on that node's machine:  make_key.sh FILE
# FILE stays there; FILE.pub goes to whoever registers the node. Flower takes ECDSA keys only.
set -eu
file=${1:?usage: make_key.sh FILE}
umask 077
ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$file"
echo "wrote $file and $file.pub"

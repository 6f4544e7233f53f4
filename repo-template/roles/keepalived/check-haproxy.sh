#!/bin/bash
# May this node hold a virtual address? Yes, while HAProxy answers and nobody asked for the node to be drained.
[ ! -e /run/datalyptica/lb-drain ] || exit 1
exec 3<>/dev/tcp/{{ node.addresses.mgmt }}/8404 || exit 1
printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
IFS= read -r -t 1 line <&3 && [[ $line == 'HTTP/'*' 200 '* ]]

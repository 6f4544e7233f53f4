//go:build tools

// Package etcd pins the store that the tests run against. It is never compiled itself: it only keeps
// the programs in go.mod, so that go.sum has the hash of everything that goes into them.
package etcd

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/server/v3"
)

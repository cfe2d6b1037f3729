// Package node is berthd, the daemon of a node. It gives jobs their berths:
// admits them as the profiles allow, makes and removes what they have on the
// node, and keeps a journal so that it may be killed at any moment.
//
// The jobs' output does not pass through it, and jobs go on while it does not
// run.
package node

// Does nothing until it is told to end, and takes orphans in: the process that holds the namespaces of a pod, or of a
// machine of the tests' clusters.
//
//	pause              ends with SIGTERM or SIGINT
//	pause TAG MACHINE  ends when its standard input does, too; the words are for those who look for it
package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for {
		reap()
		if <-signals != syscall.SIGCHLD {
			os.Exit(0)
		}
	}
}

// Asks for the status of every child that has ended.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid == 0 {
			return
		}
	}
}

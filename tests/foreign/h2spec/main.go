// Runs h2spec's cases against an HTTP/2 server in plaintext, and writes what became of each as JUnit does.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

func main() {
	host := flag.String("host", "127.0.0.1", "where the server is")
	port := flag.Int("port", 80, "its port")
	path := flag.String("path", "/", "what to ask for")
	seconds := flag.Int("timeout", 2, "how long an answer may take")
	report := flag.String("report", "", "file for the outcomes")
	flag.Parse()
	_, err := h2spec.Run(&config.Config{
		Host:         *host,
		Port:         *port,
		Path:         *path,
		Timeout:      time.Duration(*seconds) * time.Second,
		MaxHeaderLen: 4000,
		JUnitReport:  *report,
		Strict:       true,
		Sections:     flag.Args(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Answers every request on port 8080 with what it sees of its pod: who it runs as, whether the root can be written,
// and the address behind the name in the query.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
)

func main() {
	fmt.Println("hello listens on 8080")
	err := http.ListenAndServe(":8080", http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
		_, write := os.Create("/written")
		host, _ := os.Hostname()
		fmt.Fprintf(answer, "host=%s\nuser=%d\nwritable=%t\n", host, os.Getuid(), write == nil)
		if name := request.URL.Query().Get("resolve"); name != "" {
			addresses, err := net.LookupHost(name)
			fmt.Fprintf(answer, "resolved=%v error=%v\n", addresses, err)
		}
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

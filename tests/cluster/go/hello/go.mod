module protocolgateway.io/cluster/hello

go 1.24.0

// Package conformance pins the Gateway API's conformance suite, which is a test of another module.
package conformance

import _ "sigs.k8s.io/gateway-api/conformance"

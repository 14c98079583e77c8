// Package kube holds what all that talk to a cluster share: the labels of Sluice's objects and what errors of a cluster mean.
package kube

import "strings"

// Manager is the name under which fields are owned, and the value of ManagedByLabel.
const Manager = "sluice"

// The labels of objects that Sluice makes.
const (
	DeliveryLabel  = "sluice.dev/delivery" // the delivery that made or last applied the object
	ManagedByLabel = "app.kubernetes.io/managed-by"
)

// LabelValue makes a label of an identifier, which has no other characters in deliveries of Sluice's own making.
func LabelValue(id string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, id)
	return strings.Trim(clean[:min(len(clean), 63)], "-_.")
}

// Package e2e drives the program sluice as its users do: by its commands, its configuration and its files, with real
// processes, databases and receivers of webhooks around it. It has tests only.
package e2e

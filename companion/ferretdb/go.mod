module github.com/sluice-cd/sluice/companion/ferretdb

go 1.26.0

# Everything a person or CI does with Sluice starts here.
GO      ?= go
BIN     := $(CURDIR)/bin
export CGO_ENABLED = 0

COMPANIONS := prometheus ferretdb-a ferretdb-b shop render
# SLUICE_COMPANIONS tells tests and bin/sluice where the companion programs are.
export SLUICE_COMPANIONS = $(BIN)

.PHONY: build companions demo test test-fast lint fuzz clean $(COMPANIONS)

build: companions ## bin/sluice and the programs beside it
	@echo "building bin/sluice"
	@$(GO) build -trimpath -ldflags='-s -w' -o $(BIN)/sluice ./cmd/sluice

companions: $(COMPANIONS)

$(COMPANIONS):
	@echo "building bin/$@ (its own Go module: companion/$@)"
	@cd companion/$@ && $(GO) build -trimpath -ldflags='-s -w' -o $(BIN)/$@ .

demo: build ## three deliveries of a database upgrade on this machine
	@$(BIN)/sluice demo

test-fast: ## the everyday tests, under three minutes; installs what they need
	@bash test/run fast

test: ## everything, with the race detector; installs what it needs
	@bash test/run

lint: ## golangci-lint, in the version that go.mod of tools pins
	@cd tools && $(GO) build -o $(BIN)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(BIN)/golangci-lint run ./...

fuzz: ## a minute of fuzzing of each parser
	$(GO) test -run='^$$' -fuzz=FuzzParse -fuzztime=60s ./internal/deployfile

generate: ## the definitions and deep copies of api/v1alpha1, and the plain YAML of the chart
	@cd tools/generate && $(GO) build -o $(BIN)/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
	$(BIN)/controller-gen object crd paths=./api/v1alpha1 output:crd:dir=config/crd output:object:dir=api/v1alpha1
	@cp config/crd/*.yaml charts/sluice/crds/
	@cd tools/helm && $(GO) build -trimpath -o $(BIN)/helm helm.sh/helm/v4/cmd/helm
	@charts/generate config $(BIN)/helm

.PHONY: generate

test-kubernetes: companions ## the tests on real clusters (as root; builds Kubernetes once)
	@test/kubernetes

test-killed: companions ## kills the controller after every status write of a whole story and a canary at every write, on real clusters (as root; forty minutes)
	@lab/install
	@cd lab && LAB_DIR=/var/lib/sluice-lab-killed GOFLAGS=-trimpath $(GO) run ./cmd/lab run --images quick,prometheus:debian \
		sh -c 'cd .. && SLUICE_LONG=all $(GO) test -tags e2e -v -p 1 -timeout 6h -run "^(TestKilledCanary|TestClusterControllerKilled)$$" ./test/e2e ./internal/platform/kubernetes'

demo-kubernetes: build ## the demo on two Kubernetes clusters (as root; builds Kubernetes once)
	@lab/install
	@cd lab && LAB_DIR=/var/lib/sluice-lab-demo $(GO) run -trimpath ./cmd/lab run --images quick,prometheus:debian \
		sh -c '$(BIN)/sluice demo --production-kubeconfig "$$LAB_KUBECONFIG" --staging-kubeconfig "$$LAB_KUBECONFIG_STAGING"'

lab-up: ## two Kubernetes clusters on this machine, prod and staging (as root); builds Kubernetes once
	@cd lab && $(GO) run -trimpath ./cmd/lab up

lab-down: ## takes the lab's clusters down, with all that belongs to them
	@cd lab && $(GO) run -trimpath ./cmd/lab down

.PHONY: test-kubernetes test-killed demo-kubernetes lab-up lab-down

bench-controller: ## the controller with 1,000 resting deliveries, beside that of Argo Rollouts, on a cluster (as root; builds Kubernetes once)
	@bench/run

.PHONY: bench-controller

clean:
	rm -rf $(BIN)

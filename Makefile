# Berth: two programs (bin/), what they run (bin/runtime/), and their tests.

# sudo drops Go from the PATH: look where its installer puts it, too.
GO ?= $(or $(shell command -v go),/usr/local/go/bin/go)

VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)
BUILD_FLAGS := -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

PREFIX ?= /usr/local
BINDIR := $(PREFIX)/bin
LIBEXECDIR := $(PREFIX)/libexec/berth
DOCDIR := $(PREFIX)/share/doc/berth
UNITDIR := $(PREFIX)/lib/systemd/system

# A checkout of another owner's stops Go from asking git; VERSION does it above.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

# The header of NVIDIA's library warns of functions that nobody here calls.
export CGO_CFLAGS := $(or $(CGO_CFLAGS),-O2 -g) -Wno-deprecated-declarations

# Where tests and the demo find the runtime programs.
export BERTH_RUNTIME = $(abspath $(RUNTIME_DIR))

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all berth berthd berth-gpu runtime deps root lint fmt vet test test-unit test-cgroup2 test-gpu bench demo install clean help

all: berth berthd berth-gpu ## build bin/berth, bin/berthd and bin/berth-gpu (the default)

berth: ## build the executor: static, no cgo
	CGO_ENABLED=0 $(GO) build $(BUILD_FLAGS) -o bin/berth ./cmd/berth

berthd: ## build the node daemon
	CGO_ENABLED=0 $(GO) build $(BUILD_FLAGS) -o bin/berthd ./cmd/berthd

# The one program with cgo: NVIDIA's library is loaded when there is one.
berth-gpu: ## build what asks NVIDIA's driver for berthd
	CGO_ENABLED=1 $(GO) build $(BUILD_FLAGS) -o bin/berth-gpu ./cmd/berth-gpu

include runtime/build.mk

runtime: $(RUNTIME_STAMPS) ## build the pinned containerd, runc, CNI plugins, dockerd, buildx and buildctl

deps: ## install what is missing of the packages needed (root)
	@tools/deps.sh

bin/tools/golangci-lint: tools/go.mod tools/go.sum
	$(GO) -C tools build -trimpath -o $(CURDIR)/bin/tools/ tool
	@touch $@

lint: bin/tools/golangci-lint ## run the linters, and check what bin/berth is made of
	bin/tools/golangci-lint run
	GO=$(GO) tools/imports.sh

fmt: bin/tools/golangci-lint ## format the code
	bin/tools/golangci-lint fmt

vet: ## run go vet
	$(GO) vet ./...

# Built at full width first, since -p=1 holds for compiling, too: packages are
# tested one after another, each with a containerd and namespaces of its own.
test: root deps all runtime ## run all tests (root)
	$(GO) build ./...
	$(GO) test -count=1 -p=1 -timeout=20m ./...

test-unit: ## run the tests that need no root; the others say why they are skipped
	$(GO) test -count=1 -short -timeout=5m ./...

test-cgroup2: root deps runtime ## run jobs on cgroup v2, in a virtual machine (root; needs QEMU)
	GO=$(GO) test/cgroup2/run.sh

test-gpu: root deps runtime ## run what needs a GPU, a job that computes on it included (root)
	CGO_ENABLED=1 $(GO) test -count=1 -timeout=15m -v -run TestRealGPU ./gpu/nvml ./test/gpu

# Of how many rounds to take medians.
ROUNDS ?= 10

bench: root deps runtime ## print the overhead of a job beside bare and docker (root)
	$(GO) test -count=1 -run '^$$' -bench . -benchtime=$(ROUNDS)x -timeout=30m ./test/bench
	$(GO) test -count=1 -run '^$$' -bench . -timeout=30m ./test/docker
	$(GO) test -count=1 -run '^$$' -bench . ./gpu
	CGO_ENABLED=1 $(GO) test -count=1 -run '^$$' -bench . -benchtime=$(ROUNDS)x -timeout=30m ./test/gpu

demo: root deps all runtime ## run the example pipeline from nothing, with times (root)
	$(GO) run ./test/cmd/demo

root:
	@[ "$$(id -u)" -eq 0 ] || { echo "containers need root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

install: all runtime ## install under DESTDIR and PREFIX
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBEXECDIR)/cni $(DESTDIR)$(DOCDIR) $(DESTDIR)$(UNITDIR)
	install -m 755 bin/berth bin/berthd $(DESTDIR)$(BINDIR)
	install -m 755 bin/berth-gpu $(DESTDIR)$(LIBEXECDIR)
	install -m 755 $$(find $(RUNTIME_DIR) -maxdepth 1 -type f ! -name '.*') $(DESTDIR)$(LIBEXECDIR)
	install -m 755 $(RUNTIME_DIR)/cni/* $(DESTDIR)$(LIBEXECDIR)/cni
	install -m 644 config.toml.example node/berthd.toml.example $(DESTDIR)$(DOCDIR)
	sed 's,@BINDIR@,$(BINDIR),' packaging/berthd.service > $(DESTDIR)$(UNITDIR)/berthd.service

clean: ## remove what was built
	rm -rf bin

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 17

# Each target is one line of `make help`. Continuous integration runs the same targets (.ci/run).
export GOTOOLCHAIN := local
GO       ?= go
TOOLS    := bin/tools
PROTOS   := $(wildcard proto/dfs/v1/*.proto)
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
PREFIX   ?= /usr/local
FUZZTIME ?= 10s
SEEDS    ?= 200
SOAK     ?= 30m
# The long suites have targets of their own: the simulation (sim) and the ones that need real processes (demo).
PKGS     ?= ./...

.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/dfs, the one binary
	$(GO) build -ldflags "-X main.version=$(VERSION)" -o bin/dfs ./cmd/dfs

install: build ## bin/dfs under PREFIX (/usr/local), and /sbin/mount.dfs for fstab; DESTDIR goes before both
	install -D -m 755 bin/dfs $(DESTDIR)$(PREFIX)/bin/dfs
	mkdir -p $(DESTDIR)/sbin
	ln -sf $(PREFIX)/bin/dfs $(DESTDIR)/sbin/mount.dfs
	ln -sf $(PREFIX)/bin/dfs $(DESTDIR)/sbin/mount.fuse.dfs

demo: build ## a real cluster: store, kill a chunkserver mid-write, heal, read everything back
	bin/dfs demo

test: ## every test, with the race detector; simulation with a few seeds
	$(GO) test -race -timeout 20m $(PKGS)

race: test ## the same as test: tests always run with the race detector

sim: ## the whole-cluster simulation, SEEDS seeds or the one SEED, each exactly as it will run again
	cd tools && $(GO) run ./replay $(if $(SEED),-first $(SEED) -seeds 1 -twice 1,-seeds $(SEEDS))

programs: ## real programs on a mount, a database and a build of this project among them (needs root)
	$(GO) test -timeout 20m -run TestPrograms ./fusefs

posix: ## the POSIX cases, the random exerciser and real programs on a mount, at full length (needs root)
	$(GO) test -timeout 120m -run 'TestPosix|TestExercise|TestPrograms|TestDirectoryStress' ./fusefs -exercise-ops 1000000 -programs-long -stress-ops 1000

soak: build ## the random exerciser on two mounts for SOAK while chunkservers are killed and restarted (needs root)
	$(GO) test -timeout 0 -run 'TestSoak' -v ./fusefs -soak $(SOAK) -soak-dfs $(CURDIR)/bin/dfs

crash: ## fail and crash the disk at every operation: chunk store and Raft log
	$(GO) test -race -timeout 20m -run 'Crash|Fail|Fault|Corrupt' ./internal/vfs ./chunkserver/store ./master/raftlog ./master/kv

fuzz: ## every fuzz target for FUZZTIME
	@set -e; for pkg in $$(grep -rl --include=*_test.go '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | sed 's/func //'); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; done; done

bench: build ## the table of README, measured on this machine; JSON in out/bench.json
	$(GO) run ./bench -dfs bin/dfs -json out/bench.json

lint: $(TOOLS)/staticcheck ## vet and staticcheck
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...

fmt: $(TOOLS)/gofumpt ## format the code
	$(TOOLS)/gofumpt -w $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$')

fmt-check: $(TOOLS)/gofumpt ## fail when a file is not formatted
	@out=$$($(TOOLS)/gofumpt -l $$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$$')); \
	  if [ -n "$$out" ]; then echo "not formatted (run make fmt):"; echo "$$out"; exit 1; fi

gen: $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc ## generate Go from proto/ (needs Debian's protobuf-compiler)
	PATH=$(CURDIR)/$(TOOLS):$$PATH protoc -I proto --go_out=paths=source_relative:proto --go-grpc_out=paths=source_relative:proto $(PROTOS)

gen-check: ## fail when generated code differs from proto/
	@command -v protoc >/dev/null || { echo "protoc is missing: install Debian's package protobuf-compiler"; exit 1; }
	@rm -rf out/gen && mkdir -p out/gen && cp -r proto out/gen/before
	@$(MAKE) -s gen && diff -r proto out/gen/before || { echo "generated code was out of date; make gen has updated it"; exit 1; }

cover: ## coverage by package
	$(GO) test -coverprofile=out/cover.out $(PKGS) && $(GO) tool cover -func=out/cover.out | tail -1

clean: ## remove what make built
	rm -rf bin out

$(TOOLS)/gofumpt: tools/go.mod
	cd tools && $(GO) build -o ../$(TOOLS)/ mvdan.cc/gofumpt
$(TOOLS)/staticcheck: tools/go.mod
	cd tools && $(GO) build -o ../$(TOOLS)/ honnef.co/go/tools/cmd/staticcheck
$(TOOLS)/protoc-gen-go: tools/go.mod
	cd tools && $(GO) build -o ../$(TOOLS)/ google.golang.org/protobuf/cmd/protoc-gen-go
$(TOOLS)/protoc-gen-go-grpc: tools/go.mod
	cd tools && $(GO) build -o ../$(TOOLS)/ google.golang.org/grpc/cmd/protoc-gen-go-grpc

.PHONY: help build install demo test race sim programs posix soak crash fuzz bench lint fmt fmt-check gen gen-check cover clean

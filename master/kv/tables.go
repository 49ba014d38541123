package kv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"
	badgeroptions "github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// verifyTables reads every table that Badger's manifest names and compares all checksums. Badger can do the same when it opens (ChecksumVerificationMode), but it
// does so in goroutines of its own, where damage that does not decompress is a nil dereference that ends the process; and a master that dies at each start cannot
// say what to do. Here the same code runs under recover. Having passed, the tables are opened without a second verification.
func verifyTables(path string, opts badger.Options) error {
	f, err := os.Open(filepath.Join(path, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a new directory; a lost manifest shows as a state that is short
	}
	if err != nil {
		return fmt.Errorf("verify tables: %w", err)
	}
	var manifest badger.Manifest
	err = guard(func() (err error) {
		manifest, _, err = badger.ReplayManifestFile(f, 0, opts)
		return err
	})
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	var (
		ids   []uint64
		first firstError
		next  = make(chan uint64)
		wg    sync.WaitGroup
	)
	for id := range manifest.Tables {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for range min(2, len(ids)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for id := range next {
				name := table.NewFilename(id, path)
				if err := guard(func() error { return verifyTable(name, manifest.Tables[id].Compression, opts) }); err != nil {
					first.set(fmt.Errorf("table %s: %w", name, err))
				}
			}
		}()
	}
	for _, id := range ids {
		if first.get() != nil {
			break
		}
		next <- id
	}
	close(next)
	wg.Wait()
	return first.get()
}

// verifyTable opens one table, which verifies the checksums of its index and its blocks.
func verifyTable(name string, compression badgeroptions.CompressionType, opts badger.Options) error {
	mf, err := z.OpenMmapFile(name, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { _ = mf.Close(-1) }() // read only; OpenTable has closed it if it failed, which is no harm
	_, err = table.OpenTable(mf, table.Options{
		ReadOnly: true, ChkMode: badgeroptions.OnTableRead, Compression: compression, BlockSize: opts.BlockSize, BloomFalsePositive: opts.BloomFalsePositive,
	})
	return err
}

// guard turns a panic of fn over the files it reads into an error.
func guard(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("badger: %.200s", fmt.Sprint(p))
		}
	}()
	return fn()
}

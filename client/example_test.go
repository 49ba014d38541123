package client_test

import (
	"context"
	"fmt"
	"io"
	"log"

	"dfs/client"
)

// Example writes a file, reads it back, and lists its directory.
func Example() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.Config{Masters: []string{"127.0.0.1:7400"}})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	if err := c.MkdirAll(ctx, "/home/me", 0o755); err != nil {
		log.Fatal(err)
	}
	f, err := c.Create(ctx, "/home/me/hello", 0o644)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(f, "hello, world\n"); err != nil {
		log.Fatal(err)
	}
	if err := f.Sync(ctx); err != nil { // on stable storage on every replica
		log.Fatal(err)
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}

	data, err := c.ReadFile(ctx, "/home/me/hello")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s", data)
	entries, err := c.ReadDir(ctx, "/home/me")
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Println(e)
	}
}

// ExampleFile_Buffered copies a stream at full speed: acknowledgements are waited for at the end.
func ExampleFile_Buffered() {
	ctx := context.Background()
	copyIn := func(c *client.Client, src io.Reader, path string) error {
		f, err := c.Create(ctx, path, 0o644)
		if err != nil {
			return err
		}
		w := f.Buffered()
		if _, err := w.ReadFrom(src); err != nil {
			_ = f.Close() // the first error counts
			return err
		}
		if err := w.Sync(ctx); err != nil {
			_ = f.Close()
			return err
		}
		return f.Close()
	}
	_ = copyIn
}

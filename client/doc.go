// Package client is the SDK: a file system on a cluster, with the shape of package os. Dial returns a Client; its
// methods work on absolute paths (any bytes but NUL); Open, Create and OpenFile return a *File, which is an
// io.Reader, io.ReaderAt, io.Writer, io.WriterAt, io.Seeker, io.ReaderFrom and io.WriterTo; FS gives an fs.FS view.
//
// # Contexts and time
//
// What can block takes a context first, except where an interface of io or io/fs fixes the signature: those methods of a
// File run under the File's context, which is the background one unless File.WithContext gave another. Whatever the
// context, an operation retries what may pass (a master or chunkserver that restarts, a lease, safe mode) for at
// most Config.OpTimeout. A master that cannot be reached gives ErrUnavailable with the addresses tried.
//
// # Errors
//
// Methods on paths and files return *fs.PathError around the sentinels of internal/dfserr, which match
// fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, fs.ErrInvalid and fs.ErrClosed.
//
// A failed write is not forgotten: the error is returned by that call, and again by every later write, Sync and Close
// of the same open file (all views of it). Only errors that changed nothing (bad arguments) and the end of the caller's own context
// are returned once.
//
// # What a returned call means (DESIGN §9)
//
//   - Names and attributes: committed by a majority of masters.
//   - Write, WriteAt, ReadFrom, Append, AppendRecord: in the memory of every replica of the chunk's configuration. A large
//     buffer is cut into frames of 1 MiB that are in flight together; the call returns when all are acknowledged.
//   - BufferedWriter.Write and ReadFrom: nothing yet; the promise comes with Flush, Sync or Close. It is the
//     fast way to write a stream, and what "dfs put" uses.
//   - Sync: also on stable storage on every replica, for what was written through this File and for the file's last
//     chunk, whoever wrote it; together with the length.
//   - Close: as Write, and the length and modification time are recorded.
//
// # What a read may return
//
// Attributes are asked of the master each time. ReadAt returns what was acknowledged before it began, or later. Two
// things may be older, by at most Config.LocationTTL: Read and WriteTo may use bytes fetched ahead or with Open, and any read may
// miss that another client truncated the file. Changes through the same File are always seen.
//
// # Sessions
//
// The first operation that changes or opens something opens a session at the master; a stream keeps it alive. Every mutation carries
// the session and a number, under which the master remembers its reply, so an operation that is sent again after a lost
// reply happens once. At most ReplyWindow/2 are outstanding; more wait. When the master has ended the session (the client was cut off
// for longer than the session's lifetime), the next operation opens a new one; an operation that was
// under way and may or may not have happened gives ErrUnknownSession. Open files stay usable, except that a file
// whose last name was removed meanwhile may be gone (ErrStaleInode), and that files which the client had locks on refuse to be written and locked
// (ErrLocksLost) until they are closed, since others may have the locks by now.
//
// # Concurrency
//
// Client and File are safe for use by any number of goroutines. Reads and writes through one File's position (Read, Write,
// Seek) are serialised; ReadAt, WriteAt, Append and AppendRecord run concurrently. Locks are taken in the order file.posMu,
// file.grow, file.mu, and none is held across a call except the first two.
package client

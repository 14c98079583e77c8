// Package mongodb is the engine of databases that speak the MongoDB wire protocol. It is made and tested with FerretDB on
// SQLite files. What a real mongod needs beyond that, and what nobody has run against one here, is refused by name.
package mongodb

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/connstring"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// Options configure the engine.
type Options struct {
	// HelperCommand starts the process that holds writers for a copy: a program that calls Helper. Sluice's own binary
	// has a hidden command for it.
	HelperCommand []string
}

// Engine implements database.Engine, database.Quiescer and database.Preflighter.
type Engine struct{ o Options }

// New returns the engine.
func New(o Options) *Engine { return &Engine{o: o} }

// Name implements database.Engine.
func (*Engine) Name() string { return "mongodb" }

// undated is a context without its deadline; it still ends when the deadline passes. The driver would turn a deadline
// into maxTimeMS, which FerretDB refuses on most commands.
type undated struct{ context.Context }

// Deadline says that there is none.
func (undated) Deadline() (time.Time, bool) { return time.Time{}, false }

// selectionTimeout is how long a server may take to answer at all, where the URL does not say.
const selectionTimeout = 10 * time.Second

// Open implements database.Engine. Sluice never sends a command that writes; the session itself cannot be made
// read-only on this protocol.
func (*Engine) Open(ctx context.Context, u database.URL) (database.Server, error) {
	parsed, err := connstring.ParseAndValidate(u.Value)
	if err != nil {
		return nil, malformed(u.Value)
	}
	o := options.Client().ApplyURI(u.Value)
	if o.AppName == nil {
		o.SetAppName("sluice")
	}
	if o.ServerSelectionTimeout == nil {
		o.SetServerSelectionTimeout(selectionTimeout)
	}
	if u.Dial != nil {
		// A replica set would answer with the names of its members; only the Service that was named is meant.
		o.SetDialer(dialer(u.Dial)).SetDirect(true)
	}
	if err := o.Validate(); err != nil {
		return nil, malformed(u.Value)
	}
	if err := listens(ctx, u, parsed); err != nil {
		return nil, err
	}
	c, err := mongo.Connect(o)
	if err != nil {
		return nil, malformed(u.Value)
	}
	s := &server{client: c, frozen: u.Frozen, only: parsed.Database, host: strings.Join(parsed.Hosts, ",")}
	if err := s.greet(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// listens tells at once that nobody answers at the only host there is: the driver would go on trying until its timeout.
func listens(ctx context.Context, u database.URL, parsed *connstring.ConnString) error {
	if len(parsed.Hosts) != 1 || parsed.Scheme != connstring.SchemeMongoDB {
		return nil
	}
	address, network := parsed.Hosts[0], "tcp"
	if strings.HasSuffix(address, ".sock") {
		network = "unix"
	} else if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "27017")
	}
	dial := u.Dial
	if dial == nil {
		d := net.Dialer{Timeout: selectionTimeout}
		dial = d.DialContext
	}
	c, err := dial(ctx, network, address)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		return fault.WithRemedy(fault.Newf(fault.Transient, "connect to the database: nobody listens at %s", address),
			"check that the server runs and that host and port are right")
	}
	return nil // the driver says more about it
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// DialContext implements options.ContextDialer.
func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d(ctx, network, address)
}

// malformed does not repeat the parser's message, which may hold the password.
func malformed(value string) error {
	what := "is not a connection URL"
	if u, err := url.Parse(value); err == nil && u.Scheme != "mongodb" && u.Scheme != "mongodb+srv" {
		what = "is a URL of another kind"
	}
	return fault.WithRemedy(fault.Newf(fault.Invalid, "the connection to the database %s", what),
		"write mongodb://user:password@host:port/database?authSource=admin, with @ : / ? in names and passwords written as %%40 %%3A %%2F %%3F")
}

// The codes of the server's errors that mean something to people.
const (
	codeUnauthorized         = 13
	codeAuthenticationFailed = 18
	codeNamespaceNotFound    = 26
	codeCursorNotFound       = 43
	codeCommandNotFound      = 59
	codeNotImplemented       = 238
)

// problem gives an error of the driver a kind and says what to do about it.
func (s *server) problem(err error, doing string) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Newf(fault.Transient, "%s: %w", doing, err)
	}
	if e, ok := errors.AsType[mongo.CommandError](err); ok {
		switch e.Code {
		case codeUnauthorized:
			return fault.WithRemedy(fault.Newf(fault.Denied, "%s: the user lacks a privilege: %s", doing, e.Message),
				"give it the roles that `sluice` prints as grants: readAnyDatabase and clusterMonitor")
		case codeAuthenticationFailed:
			return denied(doing)
		case codeCursorNotFound:
			return fault.WithRemedy(fault.Newf(fault.Lost, "%s: the server ended the cursor", doing), "try again; somebody may have killed it")
		case codeCommandNotFound, codeNotImplemented:
			return fault.Newf(fault.Invalid, "%s: the server does not know this command: %s", doing, e.Message)
		}
	}
	if strings.Contains(err.Error(), "AuthenticationFailed") || strings.Contains(err.Error(), "unable to authenticate") {
		return denied(doing)
	}
	if errors.Is(err, mongo.ErrClientDisconnected) {
		return fault.Newf(fault.Lost, "%s: the connection was closed", doing)
	}
	if mongo.IsNetworkError(err) || mongo.IsTimeout(err) || strings.Contains(err.Error(), "server selection") {
		return fault.WithRemedy(fault.Newf(fault.Transient, "%s: %s does not answer: %w", doing, s.host, err),
			"check that the server runs and that host and port are right")
	}
	return fault.Newf(fault.Invalid, "%s: %w", doing, err)
}

func denied(doing string) error {
	return fault.WithRemedy(fault.Newf(fault.Denied, "%s: user or password is wrong", doing), "check the secret, and authSource in the URL")
}

// Preflight implements database.Preflighter: it reads everything that a comparison reads, once.
func (e *Engine) Preflight(ctx context.Context, u database.URL) ([]database.Finding, error) {
	s, err := e.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	_, err = s.Catalog(ctx)
	if closing := s.Close(); err == nil {
		err = closing
	}
	if fault.Is(err, fault.Denied) {
		return []database.Finding{{Object: "user", Class: "privilege missing", Message: err.Error()}}, nil
	}
	return nil, err
}

// Grants implements database.Preflighter. FerretDB on SQLite knows no roles; these are for servers that do.
func (*Engine) Grants(role string) string {
	name, _ := bson.MarshalExtJSON(bson.D{{Key: "createUser", Value: role}, {Key: "pwd", Value: "choose one"}, {Key: "roles", Value: bson.A{
		bson.D{{Key: "role", Value: "readAnyDatabase"}, {Key: "db", Value: "admin"}},
		bson.D{{Key: "role", Value: "clusterMonitor"}, {Key: "db", Value: "admin"}},
	}}}, false, false)
	return "use admin\ndb.runCommand(" + string(name) + ")\n"
}

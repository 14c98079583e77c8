package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sluice-cd/sluice/internal/config"
	"github.com/sluice-cd/sluice/internal/fault"
	"github.com/sluice-cd/sluice/internal/unixsocket"
)

// identity is who is calling.
type identity struct {
	user string
	has  []string // roles
}

func (i identity) roles() string { return strings.Join(i.has, ",") }

type callerKey struct{}

// caller returns who is calling, the zero identity where that is not known.
func caller(ctx context.Context) identity {
	i, _ := ctx.Value(callerKey{}).(identity)
	return i
}

// needsCaller answers 401 where it is not known who is calling, whatever the route.
func needsCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if caller(r.Context()).user == "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="sluice"`)
			refuse(w, http.StatusUnauthorized, fault.WithRemedy(fault.Newf(fault.Denied, "the API needs a credential"),
				"send Authorization: Bearer with the content of %s in the data directory, or use the command line there", tokenFile))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// bearer finds out who is calling on TCP: whoever can read the token is the owner of the data directory.
func (s *Server) bearer(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		if strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			r = r.WithContext(context.WithValue(r.Context(), callerKey{}, identity{user: "the holder of the API token", has: []string{config.Owner}}))
		}
		next.ServeHTTP(w, r)
	})
}

// peer finds out who is calling on the socket: the kernel knows it.
func (s *Server) peer(ctx context.Context, c net.Conn) context.Context {
	uid, err := unixsocket.Peer(c)
	if err != nil {
		s.o.Log.Error("a caller on the socket stays unknown and is refused", "error", err)
		return ctx
	}
	i := identity{user: userName(uid)}
	i.has = slices.Clone(s.o.Roles(i.user))
	if own, err := owner(s.o.Dir); err != nil {
		s.o.Log.Error("the owner of the data directory is not known", "error", err)
	} else if own == uid {
		i.has = append(i.has, config.Owner)
	}
	return context.WithValue(ctx, callerKey{}, i)
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

// owner returns the user id of a file's owner.
func owner(path string) (uint32, error) {
	i, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	st, ok := i.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("the owner of %s is not known here", path)
	}
	return st.Uid, nil
}
